"""`python -m dropjax.report PUZZLE OUT_DIR`: the paper's figures and analysis for any puzzle, on one page."""

import argparse
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dropjax import console
from dropjax.core.options import Options
from dropjax.core.protocols import Progress, Status
from dropjax.core.solution import Solution
from dropjax.core.stack import ACTIVATIONS
from dropjax.io.arguments import read_permutation, read_roles
from dropjax.io.loading import load
from dropjax.io.page import Drawn, render
from dropjax.make import training
from dropjax.reporting.drawing import ensure_matplotlib, own_drawing
from dropjax.runtime import device
from dropjax.runtime.writing import Results, ensure_writable
from dropjax.search.solving import solve

if TYPE_CHECKING:
    from dropjax.reporting.exhibits import Report, Step

FRESH = {
    "quick": training.Recipe(rate=1e-3, epochs=20),
    "paper": training.Recipe(),
    "none": None,
}
"""The freshly trained stack: ten times Appendix A's rate for a tenth of its epochs, or Appendix A, or no stack."""


class Pages:
    """The files of the report in a folder. Figures are written as they are drawn, and the page again after each part."""

    def __init__(self, folder: Path, title: str, step: "Step") -> None:
        self.folder, self.title, self.step = folder, title, step
        self.results = Results()
        self.written = False
        """Whether there is a page."""
        self._pictures: dict[str, Drawn] = {}
        self._template = (resources.files("dropjax.reporting") / "report.html").read_text(encoding="utf-8")

    def write(self, report: "Report", finished: bool = False) -> None:
        """The figures that are new, as PNG and SVG under `figures`, and then `numbers.json` and `index.html`."""
        for name, description, make in report.drawings[len(self._pictures) :]:
            self.step(f"figure: {name.replace('_', ' ')}")
            png, self._pictures[name] = draw(description, make)
            self.results.write(self.folder / "figures" / f"{name}.png", png)
            self.results.write(self.folder / "figures" / f"{name}.svg", self._pictures[name].wide)
        if finished:
            self.step("the page")
        numbers = {"finished": finished, **report.numbers}
        html = render(self._template, self.title, numbers, self._pictures, unfinished=not finished)
        self.results.write(self.folder / "numbers.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
        self.results.write(self.folder / "index.html", html)
        self.written = True


def draw(description: str, make: Callable[..., Any]) -> tuple[bytes, Drawn]:
    """Draws a figure as PNG, and as SVG in both layouts."""
    from dropjax.reporting.figures import STYLE

    def saved(figure: Any, form: str) -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
        return buffer.getvalue()

    with own_drawing(STYLE):
        wide, narrow = make(), make(narrow=True)
        wide.draw_without_rendering()
        wide.set_layout_engine("none")  # settled now, so that the second file has the same layout
        alt = f"{' '.join(wide.get_suptitle().split())}. {description}"
        return saved(wide, "png"), Drawn(saved(wide, "svg"), saved(narrow, "svg"), alt)


# The command


class Searching(Progress):
    """Passes on the progress of the search, which is one of the report's steps."""

    def __init__(self, shown: Progress) -> None:
        self.shown = shown

    def goes_on(self, status: Status) -> None:
        """Shows the search's status without its bar; the bar is the report's."""
        self.shown.goes_on(status._replace(done=0, of=STEPS))


@contextmanager
def steps(quiet: bool) -> Iterator[tuple["Step", Progress]]:
    """A function that begins a step, and the progress of the search: a bar on a terminal; in a log a line for each step, and
    one every ten seconds."""
    start, begun, written_over = time.perf_counter(), itertools.count(), console.is_terminal()
    with console.progress(quiet) as progress:

        def step(name: str) -> None:
            if not written_over:
                progress.says(f"{time.perf_counter() - start:6.1f} s  {name}")
            progress.begins(name)
            progress.goes_on(Status(done=next(begun), of=STEPS))

        yield step, Searching(progress)


STEPS = 28
"""The number of steps of a report with every figure: solving, the parts, the figures, and the page."""


def parser() -> console.Parser:
    """The command line's arguments."""
    p = console.Parser(
        prog="python -m dropjax.report",
        description=(__doc__ or "").split(": ", 1)[-1].capitalize(),
        done="0 done and solved; 1 not solved, or interrupted: the page shows the best order so far, or what was done",
    )
    p.add_argument("puzzle", type=Path, help="a puzzle folder or a converted .safetensors")
    p.add_argument("out", type=Path, metavar="OUT_DIR", help="folder for index.html, numbers.json and figures")
    p.add_argument(
        "--train",
        choices=tuple(FRESH),
        default="quick",
        help="the freshly trained stack: Adam 1e-3 for 20 epochs, the paper's Appendix A (minutes), or none (%(default)s)",
    )
    p.add_argument("--activation", choices=(*ACTIVATIONS, "auto"), default="relu", help="auto tries every one (%(default)s)")
    p.add_argument("--roles", type=Path, metavar="FILE", help="JSON: piece number → in, out or last, if h = d")
    p.add_argument("--initial-order", type=Path, metavar="FILE", help="a permutation to start from, such as a known answer")
    p.add_argument("--time-limit", type=float, metavar="SECONDS", help="time limit of the search")
    p.add_argument("--platform", choices=("cpu", "gpu", "cuda", "rocm", "tpu"))
    p.add_argument("--no-cache", action="store_true", help="keep no compiled programs between runs")
    p.add_argument("--quiet", action="store_true", help="print nothing")
    return p


def main(argv: list[str] | None = None) -> int:
    """Makes the report; the exit status is 0 if the puzzle was solved, 1 if it was not or the report is unfinished."""
    args = parser().parse_args(argv)
    ensure_matplotlib("report")
    ensure_writable(args.out, folder=True)
    device.configure(args.platform, cache=not args.no_cache)
    solution = pages = None
    try:
        with console.interruptions(at_once=True), steps(args.quiet) as (step, progress):
            pages = Pages(args.out, f"A dropped stack: {args.puzzle.resolve().name}", step)
            solution = make(args, pages, progress)
    except KeyboardInterrupt:
        if pages is None or not pages.written:
            raise
    said = "unfinished" if solution is None else solution.outcome.value.replace("_", " ")
    if not args.quiet:
        print(f"{said}: {args.out / 'index.html'}")
    solved = solution is not None and solution.solved
    return console.with_results(console.SOLVED if solved else console.NOT_SOLVED, pages.results)


def make(args: argparse.Namespace, pages: Pages, progress: Progress) -> Solution:
    """Solves the puzzle and writes the report. Raises KeyboardInterrupt if it is asked to stop once there is a page."""
    with console.interruptions() as interrupted:
        puzzle = load(args.puzzle, None if args.roles is None else read_roles(args.roles))
        initial = None if args.initial_order is None else read_permutation(args.initial_order)
        pages.step("solving")
        options = Options(activation=args.activation, initial_order=initial, time_limit=args.time_limit)
        solution = solve(puzzle, options, progress=progress, interrupted=interrupted)
    from dropjax.reporting.exhibits import measure

    def so_far(report: "Report") -> None:
        pages.write(report)
        if interrupted():
            raise KeyboardInterrupt

    pages.write(measure(puzzle, solution, FRESH[args.train], pages.step, so_far), finished=True)
    return solution


if __name__ == "__main__":
    console.run_command(main)
