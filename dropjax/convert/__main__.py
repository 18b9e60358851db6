"""`python -m dropjax.convert FOLDER OUT.safetensors`: convert a puzzle folder to one file."""

from pathlib import Path

from dropjax import console
from dropjax.io.arguments import read_roles
from dropjax.io.converted import write_converted
from dropjax.io.folders import read_folder
from dropjax.runtime.writing import ensure_writable, is_standard_output


def parser() -> console.Parser:
    """The command line's arguments."""
    p = console.Parser(
        prog="python -m dropjax.convert", description="Convert a puzzle folder to one file, which is quicker to read."
    )
    p.add_argument("folder", type=Path, help="puzzle folder: pieces/piece_<n>.pth and historical_data.csv")
    p.add_argument("out", type=Path, help="file to write, NAME.safetensors; - prints it, and nothing else")
    p.add_argument("--roles", type=Path, metavar="FILE", help="JSON: piece number → in, out or last, where h = d")
    return p


def main(argv: list[str] | None = None) -> int:
    """Converts the folder; the exit status is 0, or 2 for bad input, with nothing written."""
    args = parser().parse_args(argv)
    ensure_writable(args.out)
    puzzle = read_folder(args.folder, None if args.roles is None else read_roles(args.roles))
    write_converted(puzzle, args.out)
    if not is_standard_output(args.out):
        for note in puzzle.notes:
            print(note)
        depth, hidden, width = puzzle.w_in.shape
        print(f"{args.out}: {2 * depth + 1} pieces (L = {depth}, d = {width}, h = {hidden}), {len(puzzle.x)} rows")
    return console.SOLVED


if __name__ == "__main__":
    console.run_command(main)
