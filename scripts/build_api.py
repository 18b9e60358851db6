"""The API reference from the docstrings: build_api.py FOLDER. A warning is an error."""

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import dropjax

COMMANDS = {"pair", "solve"}
"""Modules in whose place `import` puts a function of that name."""


def main() -> int:
    """Exit status 0, or 2 where no folder is given."""
    if len(sys.argv) != 2:
        print("error: expected the folder to write, alone", file=sys.stderr)
        return 2
    names = [f"dropjax.{m.name}" for m in pkgutil.iter_modules(dropjax.__path__) if m.name not in COMMANDS]
    for name in names:
        importlib.import_module(name)  # before warnings are errors: what other libraries warn of is not ours
    warnings.simplefilter("error")
    pdoc.pdoc("dropjax", *names, *(f"!dropjax.{name}" for name in COMMANDS), output_directory=Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
