"""The API reference from the docstrings: build_api.py FOLDER. A warning is an error."""

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import dropjax

COMMANDS = {"dropjax.order", "dropjax.pair", "dropjax.report", "dropjax.solve", "dropjax.train"}
"""Packages of the command lines; under these names, `import dropjax` gives functions."""


def main() -> int:
    """Exit status 0, or 2 where no folder is given."""
    if len(sys.argv) != 2:
        print("error: expected the folder to write, alone", file=sys.stderr)
        return 2
    packages = [m.name for m in pkgutil.iter_modules(dropjax.__path__, "dropjax.") if m.name not in COMMANDS]
    for module in pkgutil.walk_packages(dropjax.__path__, "dropjax."):
        importlib.import_module(module.name)  # before warnings are errors: what other libraries warn of is not ours
    warnings.simplefilter("error")
    pdoc.pdoc("dropjax", *packages, *(f"!{name}$" for name in sorted(COMMANDS)), output_directory=Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
