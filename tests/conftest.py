"""Settings of every test (shapes are checked, draws repeat, compiled programs are shared), and common fixtures."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import contracts
import jax
import jaxtyping
import pytest
from hypothesis import settings

# Compiling is most of what tests do, and so XLA tries less; flags that are set already, even to nothing, are kept.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false",
)
contracts.install()

from dropjax.core.puzzle import Puzzle  # noqa: E402  so that it is checked
from dropjax.runtime.processes import KEPT  # noqa: E402  likewise

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder of compiled programs for all processes that tests start, instead of the user's."""
    os.environ["DROPJAX_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Undoes what a command line in this process did: it keeps compiled programs, and it freezes objects, which Hypothesis
    looks up in the garbage collector."""
    kept = {name: jax.config.values[name] for name in KEPT}
    yield
    for name, value in kept.items():
        jax.config.update(name, value)
    gc.unfreeze()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns type checks off, for tests of a function's own message about arguments of other types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
