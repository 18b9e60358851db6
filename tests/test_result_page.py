"""The page about a solution: everything on it is in the record, and it works in a browser, on a phone and offline."""

import base64
import hashlib
import os
import re
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import browser
import numpy as np
import pytest
from builders import random_puzzle

import dropjax
from dropjax.core.solution import Outcome
from dropjax.io.page import look_up, shell
from dropjax.io.result_page import SHOWN, errors_drawn, margins_drawn, orders_drawn, result_page


@pytest.fixture(scope="module")
def solution() -> dropjax.Solution:
    return dropjax.solve(random_puzzle(np.random.default_rng(1), L=6, d=8, h=12, rows=80)[0], method="paper")


def words(html: str) -> str:
    """The page's text."""
    return " ".join(unescape(re.sub("<[^>]+>", "", html.partition("<body>")[2])).split())


def test_every_number_is_the_records(solution: dropjax.Solution):
    html, record = result_page(solution), solution.to_json()
    found = re.findall(r'<data data-path="([^"]+)" value="([^"]*)">', html)
    assert len(found) > 50
    assert all(str(look_up(record, path)) == value for path, value in found)
    gaps = [float(value) for path, value in found if path.startswith("pairing.gap.")]
    assert gaps == sorted(gaps) and len(gaps) == 6


def test_the_permutation_can_be_copied_as_it_is_hashed(solution: dropjax.Solution):
    html = result_page(solution)
    (answer,) = re.findall('<code id="permutation">(.*?)</code>', html)
    answer = answer.replace("<wbr>", "")  # where a line may break
    assert hashlib.sha256(answer.encode()).hexdigest() == solution.sha256
    assert f"<code>{solution.sha256}</code>" in re.sub("</?data[^>]*>", "", html)
    assert '<button id="copy" type="button" hidden>' in html  # until the script is there to serve it


def test_one_script_may_run_and_nothing_is_fetched(solution: dropjax.Solution):
    html = result_page(solution)
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in html
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import', html)
    assert "script" not in shell("title", "body")


def test_what_was_assumed_and_how_sure_it_is(solution: dropjax.Solution):
    text = words(result_page(solution))
    assert "Solved: exact" in text and "with the activation a = relu" in text and "not rounded further" in text
    assert "No other answer that was tried does as well." in text and "No interchangeable pieces were found." in text
    assert "The hash is" not in text
    assert "The hash is the expected one." in words(result_page(solution, solution.sha256))
    assert "The hash is not the expected one." in words(result_page(solution, "0" * 64))


def test_a_solution_with_ties_lists_them(solution: dropjax.Solution):
    text = words(result_page(replace(solution, outcome=Outcome.EXACT_UP_TO_TIES, ties=[(1, 2), (3, 4, 5, 6)])))
    assert "Pieces that no table can tell apart: 1, 2; 3, 4, 5, 6." in text
    assert "No interchangeable pieces" not in text


def test_a_solution_within_noise_says_so(solution: dropjax.Solution):
    text = words(result_page(replace(solution, outcome=Outcome.NOISE_FLOOR, noise_floor=0.003, notes=["x's <rounding>"])))
    assert "pred is rounded or noisy, by 0.003 (RMS)" in text and "X's <rounding>." in text


def test_what_is_not_solved_is_said_to_be_that(solution: dropjax.Solution):
    changes = {"stop_reason": "time limit", "reason": "no <order> fits", "mse_of_variance": 0.25, "mse": float("nan")}
    unsolved = replace(solution, outcome=Outcome.NOT_SOLVED, doubtful=[4], unsettled=[5, 6], **changes)
    html = result_page(unsolved)
    text = words(html)
    assert "Not solved (time limit); what follows is the best so far." in text
    assert "not the answer" in text and "0.25 of pred's variance" in text and "no &lt;order&gt; fits" in html
    assert "the best order so far" in text and "put back in order" not in text and "No interchangeable" not in text
    assert "partner is in doubt (small margin): 4." in text and "whose place is in doubt: 5, 6." in text


def test_a_solve_tells_its_orders_stage_by_stage(solution: dropjax.Solution):
    told = {stage.name: stage.order for stage in solution.stages}
    assert list(told) == ["pairing", "seed order", "bradley-terry", "bubble repair", "verify"]
    assert told["pairing"] == ()
    assert told["verify"] == told["bubble repair"] == solution.permutation[0:-1:2]
    assert all(sorted(order) == sorted(solution.permutation[0:-1:2]) for order in list(told.values())[1:])


def test_auto_tells_its_orders_too():
    found = dropjax.solve(random_puzzle(np.random.default_rng(1), L=6, d=8, h=12, rows=80)[0])
    assert [bool(stage.order) for stage in found.stages] == [stage.name != "pairing" for stage in found.stages]
    assert found.stages[-1].order == found.permutation[0:-1:2]


# Drawings


def stages(count: int, **changes) -> list[dict]:
    return [
        {"name": f"stage {k}", "mse": 10.0 ** -(k % 12), "rows": 80, "order": [5, 6, 7], **changes} for k in range(count)
    ]


def test_errors_stand_on_a_logarithmic_scale():
    html = errors_drawn(stages(3))
    places = [float(x) for x in re.findall(r'cx="([\d.]+)%"', html)]
    assert places == [96.0, 50.0, 4.0]
    assert "stage 2" in html and 'aria-label="MSE after each stage: stage 0 1, stage 1 0.1, stage 2 0.01"' in html


def test_what_cannot_be_drawn_is_left_out():
    assert errors_drawn(stages(3, mse=None)) == errors_drawn(stages(3, mse=0.0)) == errors_drawn(stages(1)) == ""
    assert errors_drawn(stages(3, mse=0.5)).count("<circle") == 3  # all the same
    assert orders_drawn(stages(3, order=[]), [5, 6, 7]) == orders_drawn(stages(1), [5, 6, 7]) == ""
    assert orders_drawn(stages(3, order=[5]), [5]) == ""
    assert (
        margins_drawn([1.0], [None])
        == margins_drawn([1.0, 1.0], [1.0, 1.0])
        == margins_drawn([None, None], [None, None])
        == ""
    )


def test_of_many_stages_the_first_and_the_last_are_drawn():
    html = errors_drawn(stages(100))
    assert html.count("<circle") == SHOWN and "of 100 stages are drawn" in html
    assert "stage 9:" in html and "stage 90:" in html and "stage 50:" not in html


def test_a_strip_has_the_colours_of_final_places():
    html = orders_drawn([*stages(1, order=[7, 6, 5]), *stages(1)], [5, 6, 7])
    first, last = (re.findall(r'fill="(#\w+)"', strip) for strip in html.split("<svg")[1:])
    assert first == last[::-1] and len(set(last)) == 3
    assert "1 of 3 blocks in their final place" in html and "3 of 3 blocks in their final place" in html


def test_margins_are_drawn_on_one_scale():
    html = margins_drawn([3.0, 2.0], [0.0, 1.0])
    assert [float(x) for x in re.findall(r'cx="([\d.]+)%"', html)] == pytest.approx([96, 65.33, 4, 34.67], abs=0.01)
    assert "The least margin of a pair over its input half's next best is 1." in html


# In a browser


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(width: int, tmp_path: Path):
    from dropjax.io.loading import example

    (tmp_path / "index.html").write_text(result_page(dropjax.solve(example())), encoding="utf-8")
    shots = Path(os.environ.get("DROPJAX_ARTEFACTS") or tmp_path)
    seen = browser.visit(tmp_path / "index.html", width, shots / f"result-{width}.png")
    assert (seen.width, seen.scroll_width, seen.overflowing, seen.broken) == (width, width, [], 0)
    assert (seen.console, seen.requests, seen.served) == ([], [], ["/frame.html", "/index.html"])


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
def test_the_button_is_there_where_scripts_run(solution: dropjax.Solution, tmp_path: Path):
    page = tmp_path / "index.html"
    page.write_text(result_page(solution), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [str(browser.CHROMIUM), *flags, page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    assert '<button id="copy" type="button">Copy the permutation</button>' in done.stdout
