"""`python -m dropjax.report PUZZLE OUT_DIR`: the paper's figures and analysis for any puzzle, on one page."""

import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.stack import ACTIVATIONS
from dropjax.io.arguments import read_permutation, read_roles
from dropjax.io.loading import load
from dropjax.io.page import Drawn, render
from dropjax.make import training
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write, ensure_writable
from dropjax.search.solving import solve

if TYPE_CHECKING:
    from dropjax.reporting.exhibits import Report, Step

FRESH = {
    "quick": training.Recipe(rate=1e-3, epochs=20),
    "paper": training.Recipe(),
    "none": None,
}
"""The freshly trained stack: ten times Appendix A's rate for a tenth of its epochs, or Appendix A, or no stack."""


def draw(report: "Report", step: "Step") -> Iterator[tuple[str, bytes, Drawn]]:
    """Each figure: its name, PNG, and SVG in both layouts."""
    import matplotlib

    from dropjax.reporting.figures import STYLE

    def saved(figure: Any, form: str) -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
        return buffer.getvalue()

    with matplotlib.rc_context(STYLE):
        for name, description, make in report.drawings:
            step(f"figure: {name.replace('_', ' ')}")
            wide, narrow = make(), make(narrow=True)
            wide.draw_without_rendering()
            wide.set_layout_engine("none")  # settled: not once more for the second file
            alt = f"{' '.join(wide.get_suptitle().split())}. {description}"
            yield name, saved(wide, "png"), Drawn(saved(wide, "svg"), saved(narrow, "svg"), alt)


def write(folder: Path, title: str, report: "Report", step: "Step") -> None:
    """`index.html`, `numbers.json`, and every figure as PNG and SVG under `figures`."""
    pictures = {}
    for name, png, pictures[name] in draw(report, step):
        for suffix, content in (("png", png), ("svg", pictures[name].wide)):
            target = folder / "figures" / f"{name}.{suffix}"
            atomic_write(target, lambda path, content=content: path.write_bytes(content))
    step("the page")
    template = (resources.files("dropjax.reporting") / "report.html").read_text(encoding="utf-8")
    html = render(template, title, report.numbers, pictures)
    numbers = json.dumps(report.numbers, indent=1, allow_nan=False) + "\n"
    atomic_write(folder / "numbers.json", lambda path: path.write_text(numbers, encoding="utf-8"))
    atomic_write(folder / "index.html", lambda path: path.write_text(html, encoding="utf-8"))


# The command


@contextmanager
def steps(quiet: bool) -> Iterator["Step"]:
    """A progress bar on a terminal, a line for each step in a log."""
    if quiet:
        yield lambda name: None
    elif sys.stdout.isatty():
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        with Progress(BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as bar:
            task = bar.add_task("reading", total=STEPS)
            yield lambda name: bar.update(task, advance=1, description=name)
            bar.update(task, completed=STEPS, description="done")
    else:
        start = time.perf_counter()
        yield lambda name: print(f"{time.perf_counter() - start:6.1f} s  {name}", flush=True)


STEPS = 28
"""Of a report with every figure: solving, its parts, figures, the page."""


def parser() -> console.Parser:
    """The command line's arguments."""
    p = console.Parser(prog="python -m dropjax.report", description=(__doc__ or "").split(": ", 1)[-1].capitalize())
    p.add_argument("puzzle", type=Path, help="a puzzle folder or a converted .safetensors")
    p.add_argument("out", type=Path, metavar="OUT_DIR", help="index.html, numbers.json and figures go here")
    p.add_argument(
        "--train",
        choices=tuple(FRESH),
        default="quick",
        help="the freshly trained stack: Adam 1e-3 for 20 epochs, the paper's Appendix A (minutes), or none (%(default)s)",
    )
    p.add_argument("--activation", choices=(*ACTIVATIONS, "auto"), default="relu", help="auto tries every one (%(default)s)")
    p.add_argument("--roles", type=Path, metavar="FILE", help="JSON: piece number → in, out or last, where h = d")
    p.add_argument("--initial-order", type=Path, metavar="FILE", help="a permutation to start from, such as a known answer")
    p.add_argument("--time-limit", type=float, metavar="SECONDS", help="of the search for the order")
    p.add_argument("--platform", choices=("cpu", "gpu", "cuda", "rocm", "tpu"))
    p.add_argument("--no-cache", action="store_true", help="keep no compiled programs between runs")
    p.add_argument("--quiet", action="store_true", help="print nothing")
    return p


def main(argv: list[str] | None = None) -> int:
    """Makes the report; the exit status is 0 where the puzzle was solved, 1 where it was not, 2 for bad input."""
    args = parser().parse_args(argv)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("report: expected matplotlib to be installed (dropjax[report]), got none") from None
    ensure_writable(args.out, folder=True)
    device.configure(args.platform, cache=not args.no_cache)
    device.ensure_usable()
    with steps(args.quiet) as step:
        puzzle = load(args.puzzle, None if args.roles is None else read_roles(args.roles))
        initial = None if args.initial_order is None else read_permutation(args.initial_order)
        step("solving")
        solution = solve(puzzle, activation=args.activation, initial_order=initial, time_limit=args.time_limit)
        from dropjax.reporting.exhibits import measure

        report = measure(puzzle, solution, FRESH[args.train], step)
        write(args.out, f"A dropped stack: {args.puzzle.resolve().name}", report, step)
    if not args.quiet:
        print(f"{solution.outcome.value.replace('_', ' ')}: {args.out / 'index.html'}")
    return console.SOLVED if solution.solved else console.NOT_SOLVED


if __name__ == "__main__":
    console.run_command(main)
