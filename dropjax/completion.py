"""Completion for shells: shtab makes the script that `dropjax --completion SHELL` prints from the commands' arguments."""

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path

SHELLS = ("bash", "zsh", "tcsh")


def whole(commands: Mapping[str, str]) -> argparse.ArgumentParser:
    """One parser for all commands, with a line on what each does."""
    root = argparse.ArgumentParser(prog="dropjax")
    root.add_argument("--version", action="store_true", help="print the version")
    below = root.add_subparsers()
    for name, what in commands.items():
        of_command = importlib.import_module(f"dropjax.{name}.__main__").parser()
        below.add_parser(name, parents=[of_command], add_help=False, help=what)
    return root


def script(shell: str, commands: Mapping[str, str]) -> str:
    """The script for one of `SHELLS`. Raises ImportError without shtab."""
    import shtab

    parser = whole(commands)
    for below in parser._actions[-1].choices.values():  # type: ignore  # argparse has no public way to them
        for action in below._actions:
            if action.type is Path:
                action.complete = shtab.FILE
    return shtab.complete(parser, shell)
