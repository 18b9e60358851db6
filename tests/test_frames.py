"""Tables and solutions as pandas' DataFrames."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import random_puzzle, same, written_solution

import dropjax
from dropjax.core.puzzle import Puzzle
from dropjax.io.folders import TABLE, write_folder
from dropjax.io.loading import load

pandas = pytest.importorskip("pandas")


@pytest.fixture
def puzzle() -> Puzzle:
    return random_puzzle(np.random.default_rng(0), L=3, d=4, h=6, o=2, rows=9)[0]


def framed(puzzle: Puzzle):
    """The puzzle's table, with a column of words before ours and one behind them, in an order of its own."""
    columns = {"who": [f"row {k}" for k in range(len(puzzle.x))]}
    assert puzzle.true is not None
    for stem, values in (("true", puzzle.true), ("pred", puzzle.pred), ("measurement", puzzle.x)):
        columns |= {f"{stem}_{k}": values[:, k] for k in reversed(range(values.shape[1]))}
    return pandas.DataFrame(columns | {"remark": ""}, index=range(50, 50 + len(puzzle.x)))


KINDS = {
    "as it is": lambda frame: frame,
    "float64": lambda frame: frame.astype(dict.fromkeys(frame.columns[1:-1], "float64")),
    "nullable": lambda frame: frame.astype(dict.fromkeys(frame.columns[1:-1], "Float64")),
    "objects": lambda frame: frame.astype(object),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_gives_the_puzzle_that_arrays_give(puzzle: Puzzle, kind: str):
    assert same(Puzzle.from_frame(puzzle.pieces, KINDS[kind](framed(puzzle))), puzzle)


def test_a_frame_may_lack_true_and_number_no_single_output():
    puzzle, _ = random_puzzle(np.random.default_rng(0), L=2, d=3, h=5, rows=4)
    frame = pandas.DataFrame(puzzle.x, columns=[f"measurement_{k}" for k in range(3)]).assign(pred=puzzle.pred[:, 0])
    read = Puzzle.from_frame(puzzle.pieces, frame)
    assert read.true is None
    assert same(replace(puzzle, true=None), read)


def test_frames_of_other_libraries_will_do(puzzle: Puzzle):
    class Frame(dict):
        columns = property(lambda self: list(self))
        shape = property(lambda self: (9, len(self)))

    assert same(Puzzle.from_frame(puzzle.pieces, Frame(framed(puzzle))), puzzle)


BAD = {
    "no frame": (lambda frame: frame.to_numpy(), "frame: expected a DataFrame, got a ndarray"),
    "no pred": (lambda frame: frame.drop(columns=["pred_0", "pred_1"]), "expected a column pred or pred_0, got 'who'"),
    "a gap": (lambda frame: frame.drop(columns="pred_0"), "expected a column pred or pred_0, got 'pred_1'"),
    "numbered columns": (
        lambda frame: frame.set_axis(range(frame.shape[1]), axis=1),
        "expected a column measurement_0, got",
    ),
    "a column twice": (lambda frame: pandas.concat([frame, frame[["pred_0"]]], axis=1), "got pred_0 twice"),
    "no rows": (lambda frame: frame.iloc[:0], "frame: expected at least one row, got none"),
    "words": (lambda frame: frame.assign(pred_0="much"), "frame: pred_0: row 1: expected a number, got 'much'"),
    "truths": (lambda frame: frame.assign(pred_0=True), "frame: pred_0: expected numbers, got bool"),
    "dates": (lambda frame: frame.assign(pred_0=pandas.Timestamp(0)), "frame: pred_0: expected numbers, got datetime64"),
    "NaN": (
        lambda frame: frame.assign(pred_1=frame.pred_1.where(frame.index != 52)),
        "frame: pred_1: row 3: expected a finite float32 number, got nan",
    ),
    "too large": (
        lambda frame: frame.assign(pred_1=1e39),
        "frame: pred_1: row 1: expected a finite float32 number, got 1e+39",
    ),
    "a width": (lambda frame: frame.drop(columns="measurement_3"), "table: x: expected width 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_frame_is_refused_in_one_line(puzzle: Puzzle, name: str):
    spoil, words = BAD[name]
    with pytest.raises(dropjax.InputError) as caught:
        Puzzle.from_frame(puzzle.pieces, spoil(framed(puzzle)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# Files


FILES = {"feather": ("pyarrow", "to_feather"), "xlsx": ("openpyxl", "to_excel")}


@pytest.fixture(params=FILES)
def kept(request: pytest.FixtureRequest, puzzle: Puzzle, tmp_path: Path) -> Path:
    """Replaces the folder's CSV by a file of this format."""
    engine, write = FILES[request.param]
    pytest.importorskip(engine)
    write_folder(puzzle, tmp_path / "puzzle")
    (tmp_path / "puzzle" / TABLE).unlink()
    path = tmp_path / "puzzle" / f"historical_data.{request.param}"
    getattr(framed(puzzle).reset_index(drop=True), write)(path)
    return path


def test_a_folder_with_another_table_is_read(kept: Path, puzzle: Puzzle):
    assert same(load(kept.parent), puzzle)


def test_a_file_cut_short_is_refused_in_one_line(kept: Path):
    kept.write_bytes(kept.read_bytes()[:-1000])
    with pytest.raises(
        dropjax.InputError, match=r"historical_data\.(feather|xlsx): expected .* cut short or damaged"
    ) as caught:
        load(kept.parent)
    assert "\n" not in str(caught.value)


def test_what_a_file_lacks_is_named(kept: Path, puzzle: Puzzle):
    getattr(framed(puzzle).drop(columns=["pred_0"]).reset_index(drop=True), FILES[kept.suffix[1:]][1])(kept)
    with pytest.raises(dropjax.InputError, match=r"historical_data\.(feather|xlsx): expected a column pred or pred_0"):
        load(kept.parent)


@pytest.mark.parametrize(("end", "head", "missing"), [("feather", b"ARROW1", "pandas"), ("xlsx", b"PK\x03\x04", "openpyxl")])
def test_without_an_engine_one_line_says_what_to_install(
    end: str, head: bytes, missing: str, puzzle: Puzzle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_folder(puzzle, tmp_path / "puzzle")
    (tmp_path / "puzzle" / TABLE).unlink()
    (tmp_path / "puzzle" / f"historical_data.{end}").write_bytes(head)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(dropjax.InputError, match=r"got none: pip install 'dropjax\[(pandas|excel)\]'$"):
        load(tmp_path / "puzzle")


# Solutions


@pytest.fixture(scope="module")
def solution() -> dropjax.Solution:
    return written_solution(*random_puzzle(np.random.default_rng(1), L=4, d=6, h=9, rows=60))


def test_a_solution_is_a_row_for_each_block(solution: dropjax.Solution):
    frame, pairing = solution.to_frame(), solution.to_json()["pairing"]
    assert frame.position.tolist() == [0, 1, 2, 3]
    assert (*frame[["in", "out"]].to_numpy().reshape(-1).tolist(), solution.permutation[-1]) == solution.permutation
    by_half = {one: k for k, (one, _) in enumerate(pairing["pairs"])}
    for row in frame.to_dict("records"):
        k = by_half[row["in"]]
        assert row["best_by_weights"] == (pairing["pairs"][k][1] == row["out"])
        assert [row["score"], row["runner_up"], row["gap"]] == [pairing[name][k] for name in ("own", "runner_up", "gap")]
    assert not frame[["tied", "doubtful", "unsettled"]].to_numpy().any()


def test_a_pair_that_the_search_exchanged_has_its_own_score(solution: dropjax.Solution):
    a, b, c, d, *rest = solution.permutation
    frame = replace(solution, permutation=(a, d, c, b, *rest), ties=[(a, d, c, b)], doubtful=[a], unsettled=[c]).to_frame()
    assert frame.best_by_weights.tolist() == [False, False, True, True]
    assert (frame.gap[:2] < 0).all() and (frame.gap[2:] > 0).all()
    assert frame.tied.tolist() == [True, True, False, False]
    assert (frame.doubtful.tolist(), frame.unsettled.tolist()) == ([True, False, False, False], [False, True, False, False])


def test_without_pandas_one_line_says_what_to_install(solution: dropjax.Solution, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(dropjax.InputError, match=r"to_frame: expected pandas, got none: pip install 'dropjax\[pandas\]'"):
        solution.to_frame()


@pytest.mark.slow
def test_solving_the_example_imports_no_pandas(tmp_path: Path):
    code = "import sys; from dropjax.solve.__main__ import main; main(sys.argv[1:]); print('pandas' in sys.modules)"
    arguments = ("--out", tmp_path / "result", "--quiet")
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
