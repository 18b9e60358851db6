"""Loading puzzles from a folder, a converted file, or the package itself."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from dropjax.core.errors import InputError
from dropjax.core.puzzle import Puzzle
from dropjax.io.checks import reading
from dropjax.io.converted import read_converted
from dropjax.io.folders import read_folder


def load(path: str | Path, roles: Mapping[int, str] | None = None) -> Puzzle:
    """The puzzle in a folder (`pieces/piece_<n>.pth`, `historical_data.csv`) or in a converted `.safetensors` file.

    `roles` ("in", "out" or "last" by piece number) is needed only if shapes cannot tell the pieces apart. Raises
    `InputError`.
    """
    path = Path(path)
    with reading(path):
        if path.is_dir():
            return read_folder(path, roles)
        if path.is_file():
            return read_converted(path, roles)
    got = "something else" if path.exists() else "nothing there"
    raise InputError(f"{path}: expected a puzzle folder or a converted .safetensors file, got {got}")


def example() -> Puzzle:
    """The puzzle that ships in the package: L = 48, d = 48, h = 96, o = 1, N = 5,000."""
    with resources.as_file(resources.files("dropjax") / "example.safetensors") as path:
        return load(path)
