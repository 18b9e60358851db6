"""Convert a puzzle folder to one file: convert_pieces.py FOLDER OUT.safetensors [--roles FILE]."""

import argparse
import sys
from typing import NoReturn

from dropjax.core.errors import InputError
from dropjax.io.arguments import read_roles
from dropjax.io.converted import write_converted
from dropjax.io.folders import read_folder
from dropjax.runtime.writing import ensure_writable


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the one line and exit with status 2."""
        self.exit(2, f"error: {message}\n")


def main() -> int:
    """Exit status 0, or 2 with one line on standard error and nothing written."""
    parser = Parser(description="Convert a puzzle folder to one file, which needs no PyTorch to read.")
    parser.add_argument("folder", help="puzzle folder: pieces/piece_<n>.pth and historical_data.csv")
    parser.add_argument("out", help="file to write, NAME.safetensors")
    parser.add_argument(
        "--roles", metavar="FILE", help='JSON: piece number to "in", "out" or "last", if shapes are ambiguous'
    )
    options = parser.parse_args()
    try:
        ensure_writable(options.out)
        puzzle = read_folder(options.folder, options.roles and read_roles(options.roles))
        write_converted(puzzle, options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in puzzle.notes:
        print(note)
    L, h, d = puzzle.w_in.shape
    print(f"{options.out}: {2 * L + 1} pieces (L = {L}, d = {d}, h = {h}), {len(puzzle.x)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
