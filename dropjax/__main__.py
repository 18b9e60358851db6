"""`dropjax COMMAND …`: each command is the same code as `python -m dropjax.COMMAND …`."""

import importlib
import sys
from functools import partial
from typing import NoReturn

import dropjax
from dropjax import console

COMMANDS = {
    "solve": "put a dropped stack back in order",
    "order": "put the parts of a pretrained encoder in order, from recorded states",
    "pair": "pair the halves of a checkpoint's MLPs, and of its other paths, from weights alone",
    "trace": "tell which layers of a checkpoint are layers of another",
    "train": "train a stack, or draw one, and drop it",
    "report": "draw the paper's figures and measure its claims for a puzzle",
    "convert": "convert a puzzle folder to one file",
}


def usage() -> str:
    """The command's description of itself."""
    lines = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    return f"""usage: dropjax COMMAND …

{lines}

dropjax COMMAND --help tells more; dropjax --version tells the version; dropjax --completion SHELL prints a script that
completes commands and options in bash, zsh or tcsh."""


def print_completion(shell: str | None = None) -> None:
    """Prints the script for a shell, or one line if the shell is unknown or shtab is missing."""
    from dropjax import completion

    if shell not in completion.SHELLS:
        got = "none" if shell is None else repr(shell)
        console.fail(f"--completion: expected one of {', '.join(completion.SHELLS)}, got {got}")
    try:
        print(completion.script(shell, COMMANDS))
    except ImportError:
        console.fail("--completion: expected the package shtab (pip install shtab), got none")


def main() -> NoReturn:
    """Runs the command that the first argument names; the exit status is 2 if there is no such command."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(usage())
        sys.exit(0)
    if name == "--version":
        print(f"dropjax {dropjax.__version__}")
        sys.exit(0)
    if name == "--completion":
        print_completion(*arguments[:1])
        sys.exit(0)
    if name not in COMMANDS:
        console.fail(f"expected a command, one of {', '.join(COMMANDS)}, got {name!r} (see --help)")
    command = importlib.import_module(f"dropjax.{name}.__main__")
    console.run_command(partial(command.main, arguments))


if __name__ == "__main__":
    main()
