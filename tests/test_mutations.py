"""Mutated files of every kind end in a puzzle or in one line: few here, 100,000 in `benchmarks/mutations.py`."""

from pathlib import Path

import mutations
import pytest

from dropjax.core.errors import InputError

EACH = 30


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[mutations.Kind]:
    return mutations.kinds(tmp_path_factory.mktemp("sound"))


def test_every_sound_file_is_read(kinds: list[mutations.Kind]):
    for kind in kinds:
        kind.read()


def test_mutated_files_end_in_a_puzzle_or_one_line(kinds: list[mutations.Kind]):
    tallies = [mutations.try_files(kind, 1, 0, EACH) for kind in kinds]
    assert [failure for tally in tallies for failure in tally.failures] == []
    assert all(tally.read + tally.refused == tally.tried == EACH for tally in tallies)
    assert sum(tally.read for tally in tallies) > 0
    assert all(tally.refused > 0 for tally in tallies)
    for kind in kinds:
        kind.read()  # sound again


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyError("x"), "KeyError: 'x'"), (InputError("x" * 601), "a message that is no line")],
)
def test_another_end_counts_as_a_failure(tmp_path: Path, error: Exception, words: str):
    path = tmp_path / "file"
    path.write_bytes(b"sound")

    def read() -> None:
        raise error

    tally = mutations.try_files(mutations.Kind("any", path, read), 0, 0, 3)
    assert len(tally.failures) == 3
    assert words in tally.failures[0]
    assert path.read_bytes() == b"sound"


def test_the_same_seed_gives_the_same_mutations(tmp_path: Path):
    path, seen = tmp_path / "file", []
    path.write_bytes(bytes(range(200)))
    kind = mutations.Kind("any", path, lambda: seen.append(path.read_bytes()))
    mutations.try_files(kind, 0, 0, 6)
    mutations.try_files(kind, 0, 3, 3)
    assert seen[3:6] == seen[6:]
    assert len(set(seen)) > 3
