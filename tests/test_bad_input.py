"""Every input is either read correctly or refused with one line, and no code in it is run."""

import gzip
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import random_puzzle, same
from corpus import CONVERTED, FOLDERS, NUMBERED, ODD, renamed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.puzzle import Puzzle
from dropjax.io import tables
from dropjax.io.arguments import read_permutation, read_roles
from dropjax.io.converted import write_converted
from dropjax.io.folders import TABLE, write_folder
from dropjax.io.loading import load

LONG = {"one list copied again and again", "one list of pairs copied again and again"}
"""Folders whose refusal takes some seconds."""


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    puzzle, permutation = random_puzzle(np.random.default_rng(0), L=2, d=5, h=7, rows=6)
    pieces = [tuple(np.round(64 * a) / 64 for a in puzzle.pieces[n]) for n in permutation]
    assert max(np.abs(a).max() for piece in pieces for a in piece) < 4
    in_order = dict(enumerate(pieces))
    write_folder(Puzzle.from_arrays(in_order, puzzle.x, puzzle.pred, puzzle.true), tmp_path / "sound")
    return tmp_path / "sound"


@pytest.mark.parametrize("name", ODD)
def test_an_odd_folder_is_read_as_what_it_is(sound: Path, name: str):
    if "Parquet" in name:
        pytest.importorskip("pyarrow")
    puzzle = load(sound)
    before = {path: path.read_bytes() for path in sound.rglob("*") if path.is_file()}
    ODD[name](sound)
    after = {path: path.read_bytes() for path in sound.rglob("*") if path.is_file()}
    assert after != before or name == "a read-only folder"
    assert same(load(sound), puzzle)


@pytest.mark.parametrize("name", NUMBERED)
def test_pieces_keep_the_numbers_they_have(sound: Path, name: str):
    puzzle, number = load(sound), NUMBERED[name]
    renamed(lambda n: f"piece_{number(n)}.pth")(sound)
    pieces = {number(n): piece for n, piece in puzzle.pieces.items()}
    assert same(load(sound), Puzzle.from_arrays(pieces, puzzle.x, puzzle.pred, puzzle.true))


@pytest.mark.parametrize("place", ["a folder with spaces", "ünïcödé 层 🙂", "quo'te\"s", "new\nline", "percent%20"])
def test_a_folder_may_have_any_name(sound: Path, place: str):
    puzzle = load(sound)
    moved = sound.rename(sound.with_name(place))
    write_converted(load(moved), moved / "converted.safetensors")
    assert same(load(moved), puzzle)
    assert same(load(moved / "converted.safetensors"), puzzle)


def test_a_name_that_is_no_text_can_be_printed(monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))

    def main() -> int:
        print(os.fsdecode(b"puzzle \xff"), flush=True)
        return 0

    with pytest.raises(SystemExit) as end:
        console.run_command(main)
    assert (end.value.code, written.getvalue()) == (0, b"puzzle \\udcff\n")


def test_casts_of_a_file_with_all_layers_are_told(sound: Path):
    ODD["all layers in bfloat16"](sound)
    assert load(sound).notes == ("5 of 5 pieces: cast from bfloat16 to float32",)


def test_a_small_gzip_file_that_unpacks_to_more_than_the_bound_is_refused(sound: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "UNPACKED", 1 << 20)
    (sound / TABLE).write_bytes(gzip.compress(bytes(2 << 20)))
    assert "expected a gzip file of at most 1 MiB of text, got more" in refused(sound)


def test_without_pyarrow_one_line_says_what_to_install(sound: Path, monkeypatch: pytest.MonkeyPatch):
    (sound / TABLE).rename(sound / "historical_data.parquet")
    (sound / "historical_data.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'dropjax[parquet]'" in refused(sound)


def test_the_corpus_is_as_large_as_its_page_says():
    bad, odd = len(FOLDERS) + len(CONVERTED) + len(ROLES) + len(PERMUTATIONS), len(ODD) + len(NUMBERED)
    print(f"{bad} bad inputs, {odd} odd ones")
    readme = Path(__file__).resolve().parents[1] / "docs" / "testing.md"
    if readme.exists():
        assert f"{bad} bad inputs and {odd} odd ones" in " ".join(readme.read_text().split())
    assert min(bad, odd) >= 60


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    assert str(path) in message
    return message


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:loadtxt")
@pytest.mark.parametrize("name", [pytest.param(of, marks=pytest.mark.slow) if of in LONG else of for of in FOLDERS])
def test_a_bad_folder_is_refused_in_one_line(sound: Path, name: str):
    if "Parquet" in name:
        pytest.importorskip("pyarrow")
    edit, words = FOLDERS[name]
    edit(sound)
    message = refused(sound)
    assert all(word in message for word in words), message
    assert not (sound / "evil").exists()


@pytest.mark.parametrize("name", CONVERTED)
def test_a_bad_converted_file_is_refused_in_one_line(sound: Path, name: str):
    write, words = CONVERTED[name]
    path = sound / "bad.safetensors"
    write(sound, path)
    message = refused(path)
    assert all(word in message for word in words), message


def test_what_is_not_there_is_refused(tmp_path: Path):
    assert "nothing there" in refused(tmp_path / "nowhere")
    assert "got no pieces" in refused(tmp_path)
    assert "something else" in refused(Path("/dev/null"))


def test_a_line_break_in_a_name_does_not_break_the_line(sound: Path):
    assert str(InputError("a\nb\r\nc\u2028d")) == "a b c d"


ROLES = {
    "no JSON": (b"{", "expected JSON"),
    "no text": (b"\xff\xfe\xfa", "expected JSON"),
    "a list": (b"[1, 2]", "JSON object"),
    "a number": (b"3", "JSON object"),
    "too deep": (b"[" * 100_000, "expected JSON"),
    "a role of its own": (b'{"0": "middle"}', "'middle'"),
    "a role that is a list": (b'{"0": ["in"]}', "roles"),
    "a name for a number": (b'{"zero": "in"}', "'zero'"),
    "a piece twice": (b'{"1": "in", "01": "out"}', "piece 1 twice"),
}


@pytest.mark.parametrize("name", ROLES)
def test_bad_roles_are_refused(tmp_path: Path, name: str):
    content, word = ROLES[name]
    path = tmp_path / "roles.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word):
        read_roles(path)


PERMUTATIONS = [(b"1,2,x", "place 3.*'x'"), (b"", "place 1"), (b"\xff", "no text"), (b"1,,2", "place 2"), (b"-1", "'-1'")]


@pytest.mark.parametrize(("content", "word"), PERMUTATIONS)
def test_a_bad_permutation_is_refused(tmp_path: Path, content: bytes, word: str):
    path = tmp_path / "permutation.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word):
        read_permutation(path)


def mutations(size: int):
    """Some bytes overwritten, then perhaps a cut."""
    edits = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), min_size=1, max_size=6)
    return st.tuples(edits, st.none() | st.integers(0, size))


@pytest.mark.parametrize("which", ["pieces/piece_0.pth", "pieces/piece_1.pth", "historical_data.csv", "whole.safetensors"])
def test_mutated_bytes_end_in_a_puzzle_or_one_line(sound: Path, which: str):
    write_converted(load(sound), sound / "whole.safetensors")
    old = sound / "pieces/piece_1.pth"
    torch.save(torch.load(old), old, _use_new_zipfile_serialization=False)  # a bare pickle, without checksums
    path = sound / which
    data = path.read_bytes()

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(mutations(len(data)))
    def check(mutation):
        edits, cut = mutation
        changed = bytearray(data)
        for at, value in edits:
            changed[at] = value
        path.write_bytes(changed[:cut])
        try:
            load(path if path.suffix == ".safetensors" else sound)
        except InputError as error:
            assert "\n" not in str(error)

    check()
