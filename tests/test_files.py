"""What is written reads back; what cannot be written leaves nothing behind."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from builders import random_puzzle, same
from corpus import joined, rewritten
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from safetensors import safe_open
from safetensors.numpy import load_file, save

from dropjax.core.errors import InputError
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Outcome, Pairing, Solution, Stage
from dropjax.core.stack import replay
from dropjax.io.arguments import read_permutation, read_roles
from dropjax.io.converted import write_converted
from dropjax.io.folders import write_folder
from dropjax.io.loading import load
from dropjax.io.results import write_json, write_result
from dropjax.io.tables import read_table
from dropjax.runtime import writing
from dropjax.runtime.writing import atomic_write, ensure_writable

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "convert_pieces.py"


@pytest.fixture
def puzzle() -> Puzzle:
    return random_puzzle(np.random.default_rng(0), L=3, d=4, h=6, o=2, rows=9)[0]


@pytest.fixture
def folder(puzzle: Puzzle, tmp_path: Path) -> Path:
    write_folder(puzzle, tmp_path / "puzzle")
    return tmp_path / "puzzle"


def everything(path: Path) -> set[Path]:
    return set(path.rglob("*"))


# Puzzles


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(2, 4), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_puzzles_round_trip_bit_for_bit(tmp_path_factory, seed: int, L: int, d: int, h: int, o: int, gaps: bool):
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("puzzle")
    numbers = rng.choice(1000, 2 * L + 1, replace=False).tolist() if gaps else None
    puzzle, permutation = random_puzzle(rng, L, d, h, min(o, d - 1), rows=3, numbers=numbers)
    write_folder(puzzle, path / "a folder, ünïcode")
    read = load(path / "a folder, ünïcode", puzzle.roles)
    assert same(read, puzzle)
    write_converted(read, path / "one.safetensors")
    converted = load(path / "one.safetensors")
    assert same(converted, puzzle)
    assert converted.roles == puzzle.roles
    assert converted.permutation(converted.arrangement(permutation)) == permutation
    write_converted(converted, path / "two.safetensors")
    assert (path / "two.safetensors").read_bytes() == (path / "one.safetensors").read_bytes()


def test_a_converted_file_is_as_documented(folder: Path, puzzle: Puzzle, tmp_path: Path):
    write_converted(load(folder), tmp_path / "it.safetensors")
    named = load_file(tmp_path / "it.safetensors")
    tables = {"table.x", "table.pred", "table.true"}
    assert set(named) == tables | {f"piece_{n}.{kind}" for n in puzzle.pieces for kind in ("weight", "bias")}
    with safe_open(tmp_path / "it.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert list(metadata) == ["dropjax"]
    meta = json.loads(metadata["dropjax"])
    assert metadata["dropjax"] == json.dumps(meta, sort_keys=True)
    assert (set(meta), set(meta["inputs"])) == ({"format", "inputs"}, {"pieces", "table"})
    assert str(tmp_path) not in metadata["dropjax"]


def test_a_puzzle_without_true_values(puzzle: Puzzle, tmp_path: Path):
    bare = Puzzle.from_arrays(puzzle.pieces, puzzle.x, puzzle.pred)
    write_folder(bare, tmp_path / "folder")
    write_converted(bare, tmp_path / "file")
    assert same(load(tmp_path / "folder"), bare)
    assert same(load(tmp_path / "file"), bare)


def test_arrays_in_any_memory_order_are_written_right(puzzle: Puzzle, tmp_path: Path):
    strided = {n: (np.asfortranarray(w), np.repeat(b, 2)[::2]) for n, (w, b) in puzzle.pieces.items()}
    write_converted(Puzzle.from_arrays(strided, np.asfortranarray(puzzle.x), puzzle.pred, puzzle.true), tmp_path / "file")
    assert same(load(tmp_path / "file"), puzzle)


def test_stray_files_and_zero_padding_do_no_harm(folder: Path, puzzle: Puzzle):
    pieces = folder / "pieces"
    (pieces / "piece_0.pth").rename(pieces / "piece_000.pth")
    for name in (".DS_Store", "._piece_0.pth", "piece_0.pth.bak", "piece_x.pth", "checkpoint.pth", "piece_٣.pth"):
        (pieces / name).write_bytes(b"stray")
    (pieces / "old").mkdir()
    assert same(load(folder), puzzle)


def test_casts_and_missing_biases_are_noted(folder: Path):
    for n in (0, 1):
        state = torch.load(folder / f"pieces/piece_{n}.pth")
        torch.save({"weight": state["weight"].double()}, folder / f"pieces/piece_{n}.pth")
    assert load(folder).notes == ("2 of 7 pieces: cast from float64 to float32, no bias: taken as 0",)


def test_a_folder_is_not_written_over_another(folder: Path, puzzle: Puzzle):
    before = everything(folder.parent)
    with pytest.raises(InputError, match="can be written"):
        write_folder(puzzle, folder)
    assert everything(folder.parent) == before


def test_ambiguous_shapes_need_roles_and_the_converted_file_keeps_them(tmp_path: Path):
    puzzle, _ = random_puzzle(np.random.default_rng(0), L=2, d=4, h=4)
    assert puzzle.roles is not None
    write_folder(puzzle, tmp_path / "folder")
    with pytest.raises(InputError, match="--roles"):
        load(tmp_path / "folder")
    (tmp_path / "roles.json").write_text(json.dumps(puzzle.roles))
    read = load(tmp_path / "folder", read_roles(tmp_path / "roles.json"))
    write_converted(read, tmp_path / "file")
    assert same(load(tmp_path / "file"), puzzle)


def test_the_real_puzzle_converts_bit_for_bit(real_folder: Path, real_puzzle: Puzzle, tmp_path: Path):
    write_converted(real_puzzle, tmp_path / "real.safetensors")
    assert same(load(tmp_path / "real.safetensors"), real_puzzle)
    for number, (weight, bias) in real_puzzle.pieces.items():
        state = torch.load(real_folder / f"pieces/piece_{number}.pth", map_location="cpu", weights_only=True)
        assert state["weight"].numpy().tobytes() == weight.tobytes()
        assert state["bias"].numpy().tobytes() == bias.tobytes()


# Tables


def test_one_output_may_be_numbered_or_not(tmp_path: Path):
    puzzle, _ = random_puzzle(np.random.default_rng(0), rows=3)
    write_folder(puzzle, tmp_path / "folder")

    def numbered(rows: list[list[str]]) -> str:
        return joined([[f"{name}_0" if name in ("pred", "true") else name for name in rows[0]], *rows[1:]])

    rewritten(numbered)(tmp_path / "folder")
    assert same(load(tmp_path / "folder"), puzzle)


@settings(max_examples=50, deadline=None)
@given(
    st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.just(3)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.sampled_from(["%.9g", "%.17g", "%.149f", "%r"]),
)
def test_any_float32_is_read_as_itself(tmp_path_factory, values: np.ndarray, form: str):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    rows = [["measurement_0", "pred", "true"], *([form % float(value) for value in row] for row in values)]
    path.write_text(joined(rows))
    table = read_table(path)
    assert table.true is not None
    assert np.hstack([table.x, table.pred, table.true]).tobytes() == values.tobytes()


ENDS = {"none": ("", ""), "both": (",", ","), "rows only": ("", ","), "an empty column": (",remark", ",")}


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 9), st.sampled_from(sorted(ENDS)), st.booleans(), st.data())
def test_one_cell_too_many_is_named_wherever_it_stands(
    tmp_path_factory, rows: int, end: str, quoted: bool, data: st.DataObject
):
    path, (header, tail) = tmp_path_factory.mktemp("table") / "table.csv", ENDS[end]
    lines = [[f"{k}.5", *map(str, range(k, k + 4))] for k in range(rows)]
    first = '"row, name",' if quoted else ""
    names = f"{first}measurement_0,measurement_1,measurement_2,pred,true{header}"
    path.write_text("\n".join([names, *(first + ",".join(line) + tail for line in lines)]))
    assert read_table(path).x.shape == (rows, 3)
    row, at = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, 5))
    lines[row].insert(at, "1")
    path.write_text("\n".join([names, *(first + ",".join(line) + tail for line in lines)]))
    with pytest.raises(InputError, match=rf"row {row + 1}: expected \d+ cells as (the header has|most rows have), got \d+"):
        read_table(path)


# Results


@pytest.fixture
def solution(puzzle: Puzzle) -> Solution:
    L = puzzle.depth
    arrangement = np.tile(np.arange(L), (2, 1)).T
    pairing = Pairing("ddr", np.eye(L, dtype=np.float32), np.arange(L), True)
    return Solution(
        permutation=puzzle.permutation(arrangement),
        stack=puzzle.stack().arranged(jnp.asarray(arrangement)),
        outcome=Outcome.NOT_SOLVED,
        mse=0.5,
        max_abs_error=float("nan"),
        noise_floor=1e-7,
        rows=len(puzzle.x),
        method="paper",
        seed_order="delta_norm",
        random_seed=0,
        stop_reason="time limit",
        device="cpu",
        precision="float32",
        pairing=pairing,
        stages=[Stage("pairing", mse=float("inf"), seconds=0.1)],
        seconds={"solve": 1.0},
        ties=[(1, 2)],
        input_sha256=puzzle.hashes,
    )


def test_a_result_folder_holds_the_answer_and_a_model_that_pytorch_loads(tmp_path: Path, puzzle: Puzzle, solution: Solution):
    write_result(tmp_path / "new" / "out", solution)
    out = tmp_path / "new" / "out"
    assert {path.name for path in out.iterdir()} == {"permutation.txt", "solution.json", "model.safetensors", "index.html"}
    assert solution.sha256 in (out / "index.html").read_text(encoding="utf-8")
    assert (out / "permutation.txt").read_text() == ",".join(map(str, solution.permutation))
    assert read_permutation(out / "permutation.txt") == solution.permutation

    class Block(torch.nn.Module):
        def __init__(self, d: int, h: int):
            super().__init__()
            self.inp, self.out = torch.nn.Linear(d, h), torch.nn.Linear(h, d)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.out(torch.relu(self.inp(x)))

    class LastLayer(torch.nn.Module):
        def __init__(self, d: int, o: int):
            super().__init__()
            self.layer = torch.nn.Linear(d, o)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    model = torch.nn.Sequential(*(Block(4, 6) for _ in range(3)), LastLayer(4, 2))
    model.load_state_dict({name: torch.from_numpy(a) for name, a in load_file(out / "model.safetensors").items()})
    outputs = model(torch.from_numpy(puzzle.x)).detach().numpy()
    np.testing.assert_allclose(outputs, replay(solution.stack, puzzle.x), rtol=1e-4, atol=1e-5)


KEYS = """solved outcome permutation sha256 expected_sha256_matches mse max_abs_error noise_floor rows method activation
seed_order random_seed device precision stop_reason ties doubtful stages seconds pairing input_sha256 versions"""


def test_the_json_holds_the_documented_keys_and_no_nan(tmp_path: Path, solution: Solution):
    write_json(tmp_path / "it.json", solution)
    text = (tmp_path / "it.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert list(record) == KEYS.split()
    assert (record["solved"], record["outcome"], record["activation"]) == (False, "not_solved", "relu")
    assert (record["mse"], record["max_abs_error"], record["stages"][0]["mse"]) == (0.5, None, None)
    assert record["expected_sha256_matches"] is None
    assert record["seconds"] == {"load": None, "compile": None, "solve": 1.0, "verify": None, "total": None}
    assert [tuple(pair) for pair in record["pairing"]["pairs"]] == list(
        zip(solution.permutation[0:-1:2], solution.permutation[1:-1:2], strict=True)
    )
    assert set(record["versions"]) == {"dropjax", "jax", "jaxlib", "numpy", "scipy", "python"}


def test_an_expected_hash_is_compared_whole(solution: Solution):
    assert solution.to_json(solution.sha256.upper())["expected_sha256_matches"] is True
    assert solution.to_json("0" * 64)["expected_sha256_matches"] is False


def test_one_block_has_no_runner_up(solution: Solution):
    one = replace(solution, permutation=(5, 7, 9), pairing=Pairing("ddr", np.ones((1, 1), "f"), np.array([0]), True))
    assert one.to_json()["pairing"]["runner_up"] == [None]


# Writing whole or not at all


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "kept").write_text("as it was")
    for path in (tmp_path / "kept", tmp_path / "new", tmp_path / "a" / "b" / "new"):
        with pytest.raises(KeyboardInterrupt):
            atomic_write(path, fail)
    assert everything(tmp_path) == {tmp_path / "kept"}
    assert (tmp_path / "kept").read_text() == "as it was"


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path, solution: Solution, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_sync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_result(tmp_path / "out", solution)
    assert everything(tmp_path) == set()


def test_a_converted_file_that_reads_back_otherwise_does_not_appear(
    tmp_path: Path, puzzle: Puzzle, monkeypatch: pytest.MonkeyPatch
):
    doubled = lambda arrays, meta: save({name: 2 * a for name, a in arrays.items()}, meta)  # noqa: E731
    monkeypatch.setattr("dropjax.io.converted.save", doubled)
    with pytest.raises(InputError, match="back than was written"):
        write_converted(puzzle, tmp_path / "file")
    assert everything(tmp_path) == set()


def test_places_that_cannot_be_written_are_found_early(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = everything(tmp_path)
    for path, folder in (("file/inside", True), ("file/a/b", False), ("file", True), ("folder", False), ("n" * 300, True)):
        with pytest.raises(InputError, match=re.escape(str(tmp_path / path))):
            ensure_writable(tmp_path / path, folder)
    for path, folder in (("new/inside", True), ("file", False), ("folder", True), ("folder/new", False)):
        ensure_writable(tmp_path / path, folder)
    assert everything(tmp_path) == before


# The script


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_script_converts_and_says_what_it_cast(folder: Path, puzzle: Puzzle, tmp_path: Path):
    state = torch.load(folder / "pieces/piece_0.pth")
    torch.save({name: a.double() for name, a in state.items()}, folder / "pieces/piece_0.pth")
    done = convert(folder, tmp_path / "it.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 7 pieces: cast from float64 to float32" in done.stdout
    assert same(load(tmp_path / "it.safetensors"), puzzle)


def test_the_script_refuses_in_one_line(folder: Path, tmp_path: Path):
    shutil.copy(folder / "pieces/piece_2.pth", folder / "pieces/piece_02.pth")
    before = everything(tmp_path)
    for arguments, words in (
        ((folder, tmp_path / "new" / "it.safetensors"), "piece_02.pth and piece_2.pth"),
        ((folder,), "the following arguments are required: out"),
    ):
        done = convert(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
    assert everything(tmp_path) == before
