"""Rules of the code: which module imports which, what kernels may touch, and how long files and functions may be."""

import ast
from functools import cache
from pathlib import Path

import pytest

import dropjax

PACKAGE = Path(dropjax.__file__).parent

ROOMS = [
    "core",
    "runtime",
    "moves",
    "pairing",
    "ordering",
    "search",
    "network",
    "io",
    "make",
    "reporting",
    "console",
    "commands",
]
"""The rooms of the package, from the ground up: a module imports from its own room and from those before it."""

COMMANDS = {"solve", "order", "pair", "trace", "train", "report", "convert", "completion", "__init__", "__main__"}
"""Packages and files on top of everything, which nothing below them imports."""

KERNELS = {"core", "runtime", "moves", "pairing", "ordering"}
WITH_FILES = {"runtime/journal.py", "runtime/programs.py", "runtime/writing.py"}
"""Modules among the kernels whose task is files: checkpoints, compiled programs, and the writing of any file."""

FILE_LINES, FUNCTION_LINES = 400, 60

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
"""Files and functions that are longer, with the reason. One that is shortened must be removed here."""


@cache
def modules() -> dict[str, ast.Module]:
    """Every file's syntax tree, by its path below the package."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.Module) -> set[str]:
    """Full names of what a file imports, wherever it does so, modules and what is taken out of them alike."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: str) -> str:
    """The room of a file, or of the module that a dotted name below `dropjax` stands for."""
    first = path.removesuffix(".py").split("/")[0]
    return "commands" if first in COMMANDS else first


def graph() -> dict[str, set[str]]:
    """For each file, the files of the package that it imports. A package's `__init__` is one of them only by itself."""
    trees = modules()
    edges = {}
    for path, tree in trees.items():
        names = {name.split(".", 1)[1].replace(".", "/") for name in imports(tree) if name.startswith("dropjax.")}
        edges[path] = {file for name in names for file in (f"{name}.py", f"{name}/__init__.py") if file in trees} - {path}
    return edges


def test_every_file_has_a_room():
    assert {room(path) for path in modules()} <= set(ROOMS)


@pytest.mark.parametrize(("path", "imported"), graph().items(), ids=list(graph()))
def test_imports_go_down(path: str, imported: set[str]):
    height = ROOMS.index(room(path))
    assert [file for file in imported if ROOMS.index(room(file)) > height] == []


def test_no_import_goes_round_in_circles():
    left = graph()
    while free := [path for path, imported in left.items() if not imported & left.keys()]:
        for path in free:
            del left[path]
    assert left == {}


@pytest.mark.parametrize("path", [path for path in modules() if room(path) in KERNELS and path not in WITH_FILES])
def test_kernels_touch_no_files(path: str):
    below = imports(modules()[path])
    forbidden = ("dropjax.io", "dropjax.reporting", "safetensors", "torch", "rich")
    assert not [name for name in below if name.startswith(forbidden)]
    calls = [node.func for node in ast.walk(modules()[path]) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id in ("open", "print", "input")]
    touched = {"read_text", "write_text", "read_bytes", "write_bytes"}
    assert not [call for call in calls if isinstance(call, ast.Attribute) and call.attr in touched]


def test_what_is_long_is_listed_with_its_reason():
    files: set[str] = set()
    functions: set[str] = set()
    for path, tree in modules().items():
        if len((PACKAGE / path).read_text().splitlines()) > FILE_LINES:
            files.add(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES:
                functions.add(f"{path} {node.name}")
    assert files == set(LONG_FILES)
    assert functions == set(LONG_FUNCTIONS)


def test_docstrings_have_a_subject():
    found = []
    for path, tree in modules().items():
        texts = (
            node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        )
        found += [
            f"{path}: {text}" for text in texts if isinstance(text, str) and text.startswith(("Of ", "The same", "Told "))
        ]
    assert found == []
