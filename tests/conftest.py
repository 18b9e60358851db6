"""What holds for every test: shapes are checked, warnings are errors, compiled programs are shared; and shared fixtures."""

import os
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import settings

# Where a kernel is typed with JAX's arrays, NumPy's will do, and its scalars.
jaxtyping.Array = jax.Array | np.ndarray | np.generic
jaxtyping.install_import_hook("dropjax", "beartype.beartype")

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.load_profile("same every time")

from dropjax.core.puzzle import Puzzle  # noqa: E402  the hook comes first


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
