"""Convert a puzzle folder to one file: convert_pieces.py FOLDER OUT.safetensors [--roles FILE]."""

from pathlib import Path

from dropjax import console
from dropjax.io.arguments import read_roles
from dropjax.io.converted import write_converted
from dropjax.io.folders import read_folder
from dropjax.runtime.writing import ensure_writable, is_standard_output


def main() -> int:
    """Exit status 0; nothing is left where the file could not be written."""
    parser = console.Parser(description="Convert a puzzle folder to one file, which needs no PyTorch to read.")
    parser.add_argument("folder", help="puzzle folder: pieces/piece_<n>.pth and historical_data.csv")
    parser.add_argument("out", type=Path, help="file to write, NAME.safetensors; - prints it, and nothing else")
    parser.add_argument(
        "--roles", metavar="FILE", help='JSON: piece number to "in", "out" or "last", if shapes are ambiguous'
    )
    options = parser.parse_args()
    ensure_writable(options.out)
    puzzle = read_folder(options.folder, options.roles and read_roles(options.roles))
    write_converted(puzzle, options.out)
    if not is_standard_output(options.out):
        for note in puzzle.notes:
            print(note)
        L, h, d = puzzle.w_in.shape
        print(f"{options.out}: {2 * L + 1} pieces (L = {L}, d = {d}, h = {h}), {len(puzzle.x)} rows")
    return console.SOLVED


if __name__ == "__main__":
    console.run_command(main)
