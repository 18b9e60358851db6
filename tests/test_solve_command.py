"""`python -m dropjax.solve` as a user meets it; in process, so that JAX starts once."""

import hashlib
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import builders
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import dropjax
from dropjax import console
from dropjax.core.errors import NotWritten
from dropjax.io.converted import write_converted
from dropjax.runtime import device, journal
from dropjax.search import solving


@pytest.fixture
def solve(monkeypatch, capsys, tmp_path):
    """Runs the command with a cache of its own; gives exit status, standard output, standard error."""
    monkeypatch.setenv("DROPJAX_CACHE_DIR", str(tmp_path / "cache"))

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["dropjax.solve", "--no-cache", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("dropjax.solve", run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def planted():
    return builders.random_puzzle(np.random.default_rng(0), L=5, d=8, h=12, rows=80)


@pytest.fixture
def converted(planted, tmp_path):
    write_converted(planted[0], tmp_path / "puzzle.safetensors")
    return tmp_path / "puzzle.safetensors"


def test_solves_and_says_so(solve, planted, converted, tmp_path):
    text = ",".join(map(str, planted[1]))
    digest = hashlib.sha256(text.encode()).hexdigest()
    code, out, err = solve(converted, "--out", tmp_path / "result", "--json", tmp_path / "s.json", "--expect-sha256", digest)
    assert (code, err) == (0, "")
    assert "5 blocks, d = 8, h = 12, 1 output, 80 rows" in out
    assert "solved, exact" in out
    assert out.splitlines()[-3:] == [f"permutation: {text}", f"SHA-256: {digest}", "as expected"]
    assert (tmp_path / "result" / "permutation.txt").read_bytes() == text.encode()
    record = json.loads((tmp_path / "s.json").read_text())
    assert record == json.loads((tmp_path / "result" / "solution.json").read_text())
    assert record["permutation"] == list(planted[1])
    assert record["expected_sha256_matches"] is True
    assert set(record["seconds"]) == {"load", "compile", "solve", "verify", "total"}


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_takes_nothing_from_the_rest(converted):
    out = converted.with_name("result")
    command = f"{sys.executable} -m dropjax.solve {converted} --out {out} | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (console.NOT_WRITTEN, "")
    assert (out / "permutation.txt").exists()


def test_quiet_prints_the_permutation_alone(solve, planted, converted):
    code, out, _ = solve(converted, "--quiet")
    assert code == 0
    assert out == ",".join(map(str, planted[1])) + "\n"


def test_another_hash_than_expected_is_exit_1_with_the_answer_all_the_same(solve, planted, converted):
    code, out, _ = solve(converted, "--expect-sha256", "0" * 64)
    assert code == 1
    assert "solved, exact" in out
    assert "NOT as expected" in out
    assert f"permutation: {','.join(map(str, planted[1]))}" in out


def test_what_is_not_solved_is_written_and_said_to_be_that(solve, converted, tmp_path):
    args = ("--method", "paper", "--seed-order", "random", "--time-limit", "0.000001", "--out", tmp_path / "result")
    code, out, err = solve(converted, *args)
    assert (code, err) == (1, "")
    assert "NOT SOLVED (time limit)" in out
    record = json.loads((tmp_path / "result" / "solution.json").read_text())
    assert record["solved"] is False
    assert record["outcome"] == "not_solved"
    assert (tmp_path / "result" / "model.safetensors").exists()


def test_full_verification_replays_in_float64(solve, converted):
    code, out, _ = solve(converted, "--verify", "full")
    assert code == 0
    assert "float64 replay: MSE" in out


def test_starts_from_a_given_permutation(solve, planted, converted, tmp_path):
    (tmp_path / "order.txt").write_text(", ".join(map(str, planted[1])))
    code, out, _ = solve(converted, "--initial-order", tmp_path / "order.txt", "--method", "paper", "--rank", "none")
    assert code == 0
    assert "seed order" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--expect-sha256", "0" * 63], "expected 64 hexadecimal digits"),
        (["--expect-sha256", "g" * 64], "expected 64 hexadecimal digits"),
        (["--method", "magic"], "--method"),
        (["--memory", "lots"], "expected a size"),
        (["--time-limit", "-1"], "expected a number above 0"),
        (["--time-limit", "nan"], "expected a number above 0"),
        (["--search-rows", "0"], "expected a number above 0"),
        (["--initial-order", "nowhere.txt"], "nowhere.txt"),
        (["--roles", "nowhere.json"], "nowhere.json"),
        (["--pred-decimals", "9"], "--pred-decimals"),
        (["--surprise"], "--surprise"),
    ],
)
def test_bad_arguments_are_one_line(solve, converted, args, words):
    code, out, err = solve(converted, *args)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert words in err


def test_a_permutation_of_other_pieces_is_bad_input(solve, converted, tmp_path):
    (tmp_path / "order.txt").write_text("1,2,3")
    code, _, err = solve(converted, "--initial-order", tmp_path / "order.txt", "--out", tmp_path / "result")
    assert code == 2
    assert "expected 11 piece numbers, got 3" in err
    assert not (tmp_path / "result").exists()


def test_the_module_does_not_hide_the_function():
    importlib.import_module("dropjax.solve.__main__")
    assert dropjax.solve is solving.solve


def test_importing_dropjax_brings_nothing_heavy():
    code = "import sys, dropjax; print([m for m in ('torch', 'pandas', 'matplotlib', 'optax', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_search_out_of_time_goes_on_from_its_checkpoint(solve, planted, converted, tmp_path):
    kept = tmp_path / "kept"
    args = (converted, "--method", "paper", "--seed-order", "random", "--checkpoint", kept)
    code, out, _ = solve(*args, "--time-limit", "0.000001")
    assert code == 1
    assert "NOT SOLVED (time limit)" in out
    before = kept.read_bytes()
    code, out, err = solve(*args)
    assert (code, out) == (2, "")
    assert "expected no file, or --resume" in err
    assert kept.read_bytes() == before
    code, _, err = solve(*args, "--resume", "--temperature", "0.5")
    assert code == 2
    assert "kept: temperature: expected 0.5, got 0.001" in err
    code, out, _ = solve(*args, "--resume")
    assert code == 0
    assert kept.read_bytes() != before
    code, again, _ = solve(*args, "--resume", "--quiet")
    assert (code, again.strip()) == (0, ",".join(map(str, planted[1])))
    code, _, err = solve(converted, "--resume")
    assert code == 2
    assert "--resume goes with --checkpoint" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_leaves_the_best_so_far(tmp_path, number):
    puzzle, _ = builders.random_puzzle(np.random.default_rng(1), L=24, d=32, h=48, rows=4000)
    write_converted(puzzle, tmp_path / "slow.safetensors")
    args = [tmp_path / "slow.safetensors", "--method", "paper", "--search-rows", "4000", "--out", tmp_path / "result"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dropjax.solve", "--no-cache", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "seed order" not in (line := process.stdout.readline()):
        assert line, "ended before it could be interrupted"
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (1, "")
    assert "NOT SOLVED (interrupted)" in out
    assert json.loads((tmp_path / "result" / "solution.json").read_text())["stop_reason"] == "interrupted"


def test_several_puzzles_are_a_line_each(solve, tmp_path):
    paths, answers = [], []
    for seed in (1, 2, 3):
        puzzle, permutation = builders.random_puzzle(np.random.default_rng(seed), L=5, d=8, h=12, rows=80)
        paths.append(tmp_path / f"{seed}.safetensors")
        answers.append(",".join(map(str, permutation)))
        write_converted(puzzle, paths[-1])
    code, out, err = solve(*paths, "--out", tmp_path / "results")
    assert (code, err) == (0, "")
    assert "3 of 3 solved" in out
    assert [(tmp_path / "results" / str(seed) / "permutation.txt").read_text() for seed in (1, 2, 3)] == answers
    code, _, err = solve(*paths, "--json", tmp_path / "s.json")
    assert code == 2
    assert "--json goes with one PUZZLE, got 3" in err


def test_a_bad_puzzle_among_several_leaves_the_others(solve, planted, converted, tmp_path):
    bad, other, nowhere = (tmp_path / f"{name}.safetensors" for name in ("bad", "other", "nowhere"))
    bad.write_bytes(b"nothing")
    other.write_bytes(converted.read_bytes())
    code, out, err = solve(bad, converted, nowhere, other, "--out", tmp_path / "results")
    assert code == 2
    assert sorted(line.split(": ")[1] for line in err.splitlines()) == [str(bad), str(nowhere)]
    assert "2 of 4 solved" in out
    text = ",".join(map(str, planted[1]))
    assert [(tmp_path / "results" / name / "permutation.txt").read_text() for name in ("puzzle", "other")] == [text, text]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["other", "puzzle"]


def test_several_results_that_cannot_be_written_are_printed(solve, planted, converted, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(converted.read_bytes())
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "puzzle").write_text("in the way")
    code, out, err = solve(converted, other, "--out", tmp_path / "results")
    assert code == 3
    assert err.count("\n") == 1 and "results/puzzle" in err
    text = ",".join(map(str, planted[1]))
    assert f"{converted}: exact, MSE" in out and out.count(text) == 1
    assert (tmp_path / "results" / "other" / "permutation.txt").read_text() == text


def test_json_on_standard_output_is_alone_there(solve, planted, converted):
    code, out, err = solve(converted, "--json", "-")
    assert (code, err) == (0, "")
    assert json.loads(out)["permutation"] == list(planted[1])
    assert not Path("-").exists()


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_what_cannot_be_written_is_printed(solve, planted, converted, tmp_path, quiet, monkeypatch):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # as a full disk
    try:
        code, out, err = solve(converted, *quiet, "--out", tmp_path / "result", "--json", tmp_path / "s.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == console.NOT_WRITTEN
    assert ",".join(map(str, planted[1])) in out
    assert err.count("\n") == 1 and "result/model.safetensors" in err and "(and 1 more" in err
    assert not (tmp_path / "result").exists() and not (tmp_path / "s.json").exists()


def test_a_place_that_cannot_be_written_is_bad_input_before_anything_is_solved(solve, converted, tmp_path):
    (tmp_path / "file").write_text("")
    for option in ("--out", "--json", "--checkpoint"):
        code, out, err = solve(converted, option, tmp_path / "file" / "inside")
        assert (code, out) == (2, "")
        assert err.count("\n") == 1 and "file/inside: expected" in err
    for option, words in (("--out", "expected a folder"), ("--checkpoint", "expected a file, got standard output")):
        code, out, err = solve(converted, option, "-")
        assert (code, out) == (2, "")
        assert words in err


@pytest.mark.parametrize(("solved", "status"), [(True, 0), (False, 3)])
def test_a_checkpoint_that_cannot_be_written_ends_nothing(solve, converted, tmp_path, monkeypatch, solved, status):
    def full(*_):
        raise NotWritten("kept: expected a place that can be written, got No space left on device")

    monkeypatch.setattr(journal, "atomic_write", full)
    hopeless = [] if solved else ["--method", "paper", "--seed-order", "random", "--time-limit", "0.000001"]
    code, out, err = solve(converted, "--checkpoint", tmp_path / "kept", *hopeless)
    assert code == status
    assert "permutation: " in out
    assert err == "error: kept: expected a place that can be written, got No space left on device; the search goes on\n"


def test_a_fault_is_not_the_status_of_not_solved(solve, converted, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("broken\nhere")

    monkeypatch.setattr(solving, "pair", broken)
    monkeypatch.delenv("DROPJAX_DEBUG", raising=False)
    code, _, err = solve(converted)
    assert code == console.FAULT
    assert err == "error: an unforeseen error: RuntimeError: broken here (DROPJAX_DEBUG=1 shows where)\n"


COMMANDS = {"solve": [], "report": ["x", "page"], "pair": ["halves.safetensors"], "train": ["stack.safetensors"]}


@pytest.mark.parametrize(
    ("module", "option"),
    [pytest.param(name, False, marks=[pytest.mark.slow] * (name != "solve")) for name in COMMANDS]
    + [("solve", True), pytest.param("report", True, marks=pytest.mark.slow)],
)
def test_a_platform_that_is_not_there_is_refused(module: str, option: bool, tmp_path: Path):
    shapes = {"in": (6, 4), "out": (4, 6)}
    halves = {f"{k}.{name}": np.ones(shape, "f") for k in range(2) for name, shape in shapes.items()}
    save_file(halves, tmp_path / "halves.safetensors")
    command = [sys.executable, "-m", f"dropjax.{module}", *COMMANDS[module], *(["--platform", "tpu"] if option else [])]
    env = os.environ if option else {**os.environ, "JAX_PLATFORMS": "tpu"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert run.returncode == 2
    name = "--platform" if option else "JAX_PLATFORMS"
    assert run.stderr.startswith(f"error: {name}: expected one that JAX can use here, got tpu: ")
    assert run.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["halves.safetensors"]


@pytest.mark.parametrize(("plugins", "vendor"), [(["xla_cuda12"], "cuda"), (["xla_rocm7"], "rocm"), ([], "cuda")])
def test_a_gpu_is_asked_for_by_its_vendor(plugins: list[str], vendor: str, monkeypatch: pytest.MonkeyPatch):
    """JAX's "gpu" asks for every vendor's, and fails where one of them is not there."""
    asked = []
    monkeypatch.setattr(device, "entry_points", lambda group: [SimpleNamespace(name=name) for name in plugins])
    monkeypatch.setattr(jax.config, "update", lambda *setting: asked.append(setting))
    device.configure("gpu", cache=False)
    assert ("jax_platforms", vendor) in asked
