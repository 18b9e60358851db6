"""`solution.json` is as its published schema says, however the solve ended; and the same command gives the same answer."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import builders
import jsonschema
import numpy as np
import pytest

import dropjax
from dropjax.core.stack import forward
from dropjax.io.folders import write_folder
from dropjax.io.results import write_json
from dropjax.runtime import device

SCHEMA = json.loads((resources.files("dropjax") / "solution.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def puzzle() -> dropjax.Puzzle:
    return builders.random_puzzle(np.random.default_rng(0), L=5, d=8, h=12, rows=80)[0]


def tied() -> dropjax.Puzzle:
    """Two of the blocks are the same."""
    sound, permutation = builders.random_puzzle(np.random.default_rng(0), L=5, d=8, h=12, rows=80)
    twins = {permutation[2]: permutation[0], permutation[3]: permutation[1]}
    pieces = {n: sound.pieces[twins.get(n, n)] for n in sound.pieces}
    stack = dropjax.Puzzle.from_arrays(pieces, sound.x, sound.pred)
    arranged = stack.stack().arranged(stack.arrangement(permutation))
    return dropjax.Puzzle.from_arrays(pieces, sound.x, np.asarray(forward(arranged, sound.x)))


RUNS = {
    "solved": (puzzle, {}, "exact"),
    "by the paper's method": (puzzle, {"method": "paper"}, "exact"),
    "replayed in float64": (puzzle, {"verify": "full"}, "exact"),
    "ties": (tied, {}, "exact_up_to_ties"),
    "out of time": (puzzle, {"method": "paper", "seed_order": "random", "time_limit": 1e-6}, "not_solved"),
    "another stack's pred": (
        lambda: dropjax.Puzzle.from_arrays(puzzle().pieces, puzzle().x, puzzle().pred[::-1]),
        {"time_limit": 2.0},
        "not_solved",
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    make, options, outcome = RUNS[request.param]
    solution = dropjax.solve(make(), **options)
    path = tmp_path_factory.mktemp("record") / "it.json"
    write_json(path, solution, "0" * 64 if "verify" in options else None)
    found = json.loads(path.read_text())
    assert found["outcome"] == outcome
    assert bool(found["ties"]) == (outcome == "exact_up_to_ties")
    assert ("replay" in found) == ("verify" in options)
    return found


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_record_is_as_the_schema_says(record: dict):
    VALIDATOR.validate(record)


def test_the_schema_refuses_what_is_no_record(record: dict):
    for name in record:
        missing = {key: value for key, value in record.items() if key != name}
        assert VALIDATOR.is_valid(missing) == (name in ("replay", "reason", "unsettled", "mse_of_variance")), name
    changes = [
        {"surprise": 1},
        {"solved": not record["solved"]},
        {"outcome": "perhaps"},
        {"permutation": [*record["permutation"], record["permutation"][0]]},
        {"sha256": record["sha256"].upper() + "0"},
        {"mse": -1.0},
        {"mse": "small"},
        {"rows": 0},
        {"ties": [[1]]},
        {"input_sha256": {"pieces": "0"}},
        {"versions": {}},
        {"seconds": {}},
        {"stages": [{"name": "pairing"}]},
        {"stages": [record["stages"][-1] | {"order": []}]},
        {"pairing": {}},
    ]
    for change in changes:
        assert not VALIDATOR.is_valid(copy.deepcopy(record) | change), change


ON_CORES = """
import json, os, runpy, sys
if cores := json.loads(sys.argv.pop(1)):
    os.sched_setaffinity(0, cores)
runpy.run_module("dropjax.solve", run_name="__main__", alter_sys=True)
"""


def solve(path: Path, cache: Path, cores: list[int] | None = None, *options: str) -> dict:
    """The record of a process that may use these cores."""
    out = path.parent / "it.json"
    process = subprocess.run(
        [sys.executable, "-c", ON_CORES, json.dumps(cores), str(path), "--json", str(out), *options],
        env={**os.environ, "DROPJAX_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode in (0, 1), process.stderr) == (True, "")
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_time_limited_command_writes_what_the_schema_says(tmp_path: Path, cache: Path):
    write_folder(puzzle(), tmp_path / "folder")
    found = solve(tmp_path / "folder", cache, None, "--time-limit", "0.001", "--method", "paper", "--seed-order", "random")
    VALIDATOR.validate(found)
    assert found["stop_reason"] == "time limit"
    assert set(found["input_sha256"]) == {"pieces", "table"}
    assert None not in found["seconds"].values()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say which cores a process may use")
def test_one_and_two_threads_give_the_same_answer(tmp_path: Path, cache: Path):
    with resources.as_file(resources.files("dropjax") / "example.safetensors") as path:
        (tmp_path / "example.safetensors").write_bytes(path.read_bytes())
    cores = sorted(os.sched_getaffinity(0))
    one, two = (solve(tmp_path / "example.safetensors", cache, cores[:count]) for count in (1, 2))
    for found in (one, two):
        VALIDATOR.validate(found)
    # Errors and margins are sums, which other threads add up otherwise; what is decided by them must not change.
    for name in (
        "outcome",
        "permutation",
        "sha256",
        "seed_order",
        "ties",
        "doubtful",
        "input_sha256",
        "random_seed",
        "versions",
    ):
        assert one[name] == two[name], name
    assert one["pairing"]["pairs"] == two["pairing"]["pairs"]
    digests = one["input_sha256"]
    assert digests["converted"] == hashlib.sha256((tmp_path / "example.safetensors").read_bytes()).hexdigest()
    assert (one["random_seed"], one["precision"]) == (0, device.PRECISION)
