"""The report as a user meets it: files, numbers, and the page in a browser."""

import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from html import unescape
from importlib import resources
from pathlib import Path

import browser
import builders
import commands
import matplotlib
import numpy as np
import pytest

from dropjax import console
from dropjax.core.protocols import Progress, Status
from dropjax.core.puzzle import Puzzle
from dropjax.io import page
from dropjax.io.converted import write_converted
from dropjax.report import __main__ as command
from dropjax.report.__main__ import main as report
from dropjax.reporting import exhibits, figures
from dropjax.search.solving import solve
from dropjax.train.__main__ import main as train


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a small puzzle."""
    folder = tmp_path_factory.mktemp("report")
    puzzle, _ = builders.random_puzzle(np.random.default_rng(0), L=6, d=8, h=12, rows=80)
    write_converted(puzzle, folder / "puzzle.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(small):
    """That folder with one whole report."""
    assert report([str(small / "puzzle.safetensors"), str(small / "out"), "--quiet", "--no-cache"]) == 0
    return small


def numbers_in(html):
    """Path and value of every number on a page."""
    found = re.findall(r'<data data-path="(.*?)" value="(.*?)">', html)
    return [(unescape(path), unescape(value)) for path, value in found]


@pytest.mark.slow
def test_everything_is_there(made):
    names = {path.stem for path in (made / "out" / "figures").glob("*.png")}
    assert names == {path.stem for path in (made / "out" / "figures").glob("*.svg")}
    assert len(names) == 18
    html = (made / "out" / "index.html").read_text()
    assert html.count("<figure>") == len(names)
    alts = re.findall(r'alt="(.*?)"', html)
    assert len(set(alts)) == len(names) and min(map(len, alts)) > 60


@pytest.mark.slow
def test_the_page_shows_what_numbers_json_holds(made):
    numbers = json.loads((made / "out" / "numbers.json").read_text())
    shown = numbers_in((made / "out" / "index.html").read_text())
    assert len(shown) > 250
    for path, value in shown:
        assert str(page.look_up(numbers, path)) == value
    assert numbers["solution"]["solved"] is True
    assert numbers["puzzle"] == {"blocks": 6, "hidden": 12, "width": 8, "outputs": 1, "rows": 80, "activation": "relu"}


@pytest.mark.slow
def test_the_page_agrees_with_the_papers_tables(made):
    path = Path(__file__).parents[1] / "benchmarks" / "paper_tables.py"
    spec = importlib.util.spec_from_file_location("paper_tables", path)
    assert spec is not None and spec.loader is not None
    paper_tables = importlib.util.module_from_spec(spec)
    sys.modules["paper_tables"] = paper_tables
    spec.loader.exec_module(paper_tables)
    theirs = json.loads(json.dumps(paper_tables.measure(made / "puzzle.safetensors")))
    ours = json.loads((made / "out" / "numbers.json").read_text())
    for name in ("seeds", "table1", "table2", "table3"):
        assert ours[name] == theirs[name]
    # Where the repair from delta-norm stalls, theirs measures spans in an order that is not the answer.
    stalled = {"cycle_span_max"} if ours["table2"][-1][2] > 1e-9 else set()
    for name in ("pairing", "bradley_terry"):
        for key in theirs[name].keys() & ours[name].keys() - stalled:
            expected = theirs[name][key]
            assert ours[name][key] == (None if isinstance(expected, float) and np.isnan(expected) else expected), key


@pytest.mark.slow
def test_nothing_outside_is_asked_for(made):
    html = (made / "out" / "index.html").read_text()
    assert not re.findall(r"""(?:src|href|srcset)=["'](?!data:|#)""", html)
    assert "default-src 'none'" in html
    assert str(made) not in html


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "figures"), [(1, 13), (2, 18)])
def test_stacks_of_one_and_two_blocks(depth, figures, tmp_path):
    """For a very small stack, what makes no sense is left out, and nothing is NaN."""
    shape = ("--depth", str(depth), "--hidden", "7", "--width", "5", "--rows", "60", "--epochs", "2", "--quiet")
    assert train([str(tmp_path / "few.safetensors"), "--curves", str(tmp_path / "curves.json"), *shape]) == 0
    assert report([str(tmp_path / "few.safetensors"), str(tmp_path / "out"), "--quiet"]) == 0

    def forbidden(constant):
        raise AssertionError(f"{constant} is no JSON")

    curves = json.loads((tmp_path / "curves.json").read_text(), parse_constant=forbidden)["rows"]
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text(), parse_constant=forbidden)
    html = (tmp_path / "out" / "index.html").read_text()
    assert len(list((tmp_path / "out" / "figures").glob("*.svg"))) == html.count("<figure>") == figures
    assert not [alt for alt in re.findall(r'alt="(.*?)"', html) if "nan" in alt]
    for path, value in numbers_in(html):
        assert str(page.look_up(numbers, path)) == value
    assert ("nothing to order" in html) == (depth == 1)
    assert ("league" in numbers) == ("commutators" in numbers) == (depth == 2)
    for correlation in (curves[0]["delta_norm"], numbers["proposition_1"]["delta_norm_correlation"]):
        assert correlation is None if depth == 1 else abs(correlation) == pytest.approx(1)


def assert_fits(page, width, shot):
    """In a browser of that width nothing overflows, no image is broken, nothing is logged and nothing is fetched."""
    shot.parent.mkdir(parents=True, exist_ok=True)
    seen = browser.visit(page, width, shot)
    assert (seen.width, seen.scroll_width) == (width, width)
    assert seen.overflowing == []
    assert seen.broken == 0
    assert (seen.console, seen.requests) == ([], [])
    assert seen.served == ["/frame.html", "/index.html"]
    assert shot.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(made, width, tmp_path):
    shots = Path(os.environ.get("DROPJAX_ARTEFACTS") or tmp_path)
    assert_fits(made / "out" / "index.html", width, shots / f"report-{width}.png")


@pytest.mark.slow
def test_the_real_puzzles_page(real_folder, tmp_path):
    """Its numbers are the paper's, and it fits a screen and a phone."""
    assert report([str(real_folder), str(tmp_path / "out"), "--train", "none", "--quiet"]) == 0
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert numbers["solution"]["outcome"] == "exact"
    assert numbers["seeds"] == {
        "delta_norm": pytest.approx(0.036794, abs=5e-7),
        "w_out_norm": pytest.approx(0.075851, abs=5e-7),
    }
    assert [[row[1] for row in numbers[table][1:]] for table in ("table2", "table3")] == [
        [23, 20, 21, 15, 11, 9, 12, 5, 2, 1, 1, 1, 1],
        [30, 16, 12, 9, 4, 1],
    ]
    assert (numbers["bradley_terry"]["three_cycles"], numbers["bradley_terry"]["violating_triples"]) == (22, 66)
    if browser.CHROMIUM is not None:
        shots = Path(os.environ.get("DROPJAX_ARTEFACTS") or tmp_path)
        for width in (1280, 390):
            assert_fits(tmp_path / "out" / "index.html", width, shots / f"real-{width}.png")


@pytest.mark.slow
def test_not_solved_is_said(made):
    """With another stack's predictions, the report describes the best order and says that it is not the answer."""
    puzzle, _ = builders.random_puzzle(np.random.default_rng(1), L=6, d=8, h=12, rows=80)  # compiled already
    other = Puzzle.from_arrays(puzzle.pieces, puzzle.x, -puzzle.pred[::-1])
    steps = []
    found = exhibits.measure(other, solve(other, method="paper", rank="none"), None, steps.append)
    assert len(steps) == len(exhibits.PARTS)
    template = (resources.files("dropjax.reporting") / "report.html").read_text(encoding="utf-8")
    drawn = {drawing.name: page.Drawn(b"", b"", drawing.description) for drawing in found.drawings}
    html = page.render(template, "Other", {"finished": True, **found.numbers}, drawn)
    assert found.numbers["solution"]["solved"] is False
    assert "This puzzle was not solved" in html
    assert "freshly trained" not in html
    assert "This puzzle was not solved" not in (made / "out" / "index.html").read_text()


class Broken(Exception):
    pass


def stopped(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def broken(*_):
    raise Broken


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "expected"), [(stopped, console.NOT_SOLVED), (broken, Broken)])
def test_an_unfinished_report_holds_what_there_is(made, ending, expected, tmp_path, monkeypatch, capsys):
    """The first two parts, whose figures and numbers are there and no others, on a page that says so."""
    parts = dict(exhibits.PARTS)
    monkeypatch.setattr(exhibits, "PARTS", {**parts, list(parts)[2]: ending})
    arguments = [str(made / "puzzle.safetensors"), str(tmp_path / "out"), "--no-cache"]
    if expected is Broken:
        with pytest.raises(Broken):
            report(arguments)
    else:
        assert report(arguments) == expected
        assert capsys.readouterr().out.endswith(f"unfinished: {tmp_path / 'out' / 'index.html'}\n")
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert "This report is unfinished" in html
    assert set(numbers) == {"finished", "puzzle", "solution", "made_by", "table"} and not numbers["finished"]
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert drawn == {"architecture", "table", "table_character"}
    assert html.count("<figure>") == len(drawn)
    assert re.findall("<h2.*?>(.*?)</h2>", html) == ["The puzzle", "The table", "How this was made"]
    for path, value in numbers_in(html):
        assert str(page.look_up(numbers, path)) == value
    whole = (made / "out" / "index.html").read_text(encoding="utf-8")
    assert "unfinished" not in whole and json.loads((made / "out" / "numbers.json").read_text())["finished"]


@pytest.mark.slow
def test_a_search_for_a_report_that_is_stopped_gives_a_page(small, tmp_path, monkeypatch):
    search = command.solve

    def interrupted_at_once(*args, interrupted, **changes):
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        return search(*args, interrupted=interrupted, **changes)

    monkeypatch.setattr(command, "solve", interrupted_at_once)
    assert report([str(small / "puzzle.safetensors"), str(tmp_path / "out"), "--quiet", "--no-cache"]) == console.NOT_SOLVED
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert set(numbers) == {"finished", "puzzle", "solution", "made_by"} and not numbers["finished"]
    assert {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")} == {"architecture"}


@pytest.mark.slow
def test_a_figure_that_cannot_be_written_takes_nothing_from_the_others(small, tmp_path, capsys, monkeypatch):
    parts = dict(exhibits.PARTS)
    monkeypatch.setattr(exhibits, "PARTS", {**dict(list(parts.items())[:2]), "the end": stopped})
    (tmp_path / "out" / "figures" / "table.png" / "x").mkdir(parents=True)
    puzzle = str(small / "puzzle.safetensors")
    assert report([puzzle, str(tmp_path / "out"), "--quiet", "--no-cache", "--train", "none"]) == console.NOT_WRITTEN
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "figures/table.png: expected a place that can be written" in err
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir() if path.is_file()}
    assert names == {"table.svg", *(f"{of}.{form}" for of in ("architecture", "table_character") for form in ("png", "svg"))}
    assert (tmp_path / "out" / "index.html").exists()


def test_no_setting_of_the_users_changes_a_figure():
    make = functools.partial(figures.architecture, 3, 4, 5, 1, "relu")
    expected = command.draw("boxes", make)
    with matplotlib.rc_context({"axes.facecolor": "red", "text.usetex": True, "font.size": 30, "savefig.bbox": "tight"}):
        assert command.draw("boxes", make) == expected
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["nonsense", "module://nowhere", "QtAgg"])
def test_no_backend_of_the_users_is_in_the_way(backend, tmp_path):
    code = (
        "from dropjax.reporting import drawing; drawing.ensure_matplotlib('it')\n"
        "from dropjax.report.__main__ import draw; from dropjax.reporting import figures\n"
        "make = lambda narrow=False: figures.architecture(3, 4, 5, 1, 'relu', narrow)\n"
        "print(len(draw('boxes', make)[0]) > 1000)"
    )
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: QtAgg\n")
    env = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (run.stdout, run.stderr) == ("True\n", "")


@pytest.mark.slow
def test_curves_follow_a_training(tmp_path):
    curves = tmp_path / "curves.json"
    shape = ("--depth", "3", "--hidden", "7", "--width", "5", "--rows", "40", "--epochs", "2", "--seed", "0,1")
    assert train([str(tmp_path / "stack.safetensors"), "--curves", str(curves), "--quiet", *shape]) == 0
    rows = json.loads(curves.read_text())["rows"]
    assert [(row["epoch"], row["seed"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert {"loss", "negative_traces", "paired", "own_min", "other_max", "w_out_norm", "delta_norm"} <= set(rows[0])


def test_bad_input_is_one_line(tmp_path):
    done = commands.run("report", tmp_path / "none", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_importing_dropjax_leaves_matplotlib_alone():
    code = "import sys, dropjax, dropjax.io.page, dropjax.report.__main__; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(("record", "text"), [({"a": {"b": 2}}, "yes"), ({"a": {"b": 0}}, "no"), ({"c": 1}, "no")])
def test_parts_are_kept_by_what_the_record_holds(record, text):
    html = page.render("{{if a.b}}\nyes\n{{end}}\n{{unless a.b}}\nno\n{{end}}\n", "", record, {})
    assert re.findall("yes|no$", html, re.MULTILINE) == [text]


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, "", "—"),
        (True, "", "yes"),
        (12345, "", "12,345"),
        (-0.25, ".2f", "−0.25"),
        (1.5e-15, ".2g", "1.5·10<sup>−15</sup>"),
        ("<a>", "", "&lt;a&gt;"),
    ],
)
def test_numbers_as_people_read_them(value, form, text):
    assert page.shown(value, form) == text


def test_a_search_within_a_report_keeps_the_reports_bar():
    heard = []

    class Shown(Progress):
        def goes_on(self, status: Status) -> None:
            heard.append(status)

    command.Searching(Shown()).goes_on(Status(share=0.5, words="attempt 1", done=3, of=10))
    assert heard == [Status(share=0.5, words="attempt 1", done=0, of=command.STEPS)]
