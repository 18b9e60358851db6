"""Whatever is handed in is read rightly or refused with one line; nothing in it is run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import random_puzzle
from corpus import CONVERTED, FOLDERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropjax import files
from dropjax.puzzle import InputError, Puzzle


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    puzzle, permutation = random_puzzle(np.random.default_rng(0), L=2, d=5, h=7, rows=6)
    in_order = dict(enumerate(puzzle.pieces[n] for n in permutation))
    files.write_folder(Puzzle.from_arrays(in_order, puzzle.x, puzzle.pred, puzzle.true), tmp_path / "sound")
    return tmp_path / "sound"


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        files.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    assert str(path) in message
    return message


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize("name", FOLDERS)
def test_a_bad_folder_is_refused_in_one_line(sound: Path, name: str):
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
        files.read_roles(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"1,2,x", "place 3.*'x'"), (b"", "place 1"), (b"\xff", "no text"), (b"1,,2", "place 2"), (b"-1", "'-1'")],
)
def test_a_bad_permutation_is_refused(tmp_path: Path, content: bytes, word: str):
    path = tmp_path / "permutation.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word):
        files.read_permutation(path)


def mutations(size: int):
    """Some bytes overwritten, then perhaps a cut."""
    edits = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), min_size=1, max_size=6)
    return st.tuples(edits, st.none() | st.integers(0, size))


@pytest.mark.parametrize("which", ["pieces/piece_0.pth", "pieces/piece_1.pth", "historical_data.csv", "whole.safetensors"])
def test_mutated_bytes_end_in_a_puzzle_or_one_line(sound: Path, which: str):
    files.write_converted(files.load(sound), sound / "whole.safetensors")
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
            files.load(path if path.suffix == ".safetensors" else sound)
        except InputError as error:
            assert "\n" not in str(error)

    check()
