"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

from dropjax.core.puzzle import Puzzle


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """The real puzzle's folder: $DROPJAX_PUZZLE, or shared/puzzle beside the repository."""
    folder = Path(os.environ.get("DROPJAX_PUZZLE", Path(__file__).resolve().parents[2] / "shared" / "puzzle"))
    if not (folder / "pieces").is_dir():
        pytest.skip(f"the real puzzle is not at {folder}: set DROPJAX_PUZZLE to its folder")
    return folder


@pytest.fixture(scope="session")
def real_puzzle(real_folder: Path) -> Puzzle:
    """The real puzzle, read once."""
    from dropjax.io.loading import load

    return load(real_folder)
