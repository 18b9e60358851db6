"""Command lines in the tests' own process: as in one of their own, without the second it takes to start."""

import contextlib
import importlib
import io
import subprocess

from dropjax import console


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What `python -m dropjax.NAME ARGUMENTS` ends with and prints. Its warnings are errors, as everywhere in tests."""
    command = ["dropjax", name, *map(str, arguments)]
    main = importlib.import_module(f"dropjax.{name}.__main__").main
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = console.status_of(lambda: main(command[2:]))
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())
