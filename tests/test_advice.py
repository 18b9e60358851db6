"""The advice on what to try next after a search that ends unsolved."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import random_puzzle, written_solution

import dropjax
from dropjax.core.options import Options
from dropjax.core.protocols import StopReason
from dropjax.core.solution import Outcome
from dropjax.solve.advice import advice


@pytest.fixture(scope="module")
def solution() -> dropjax.Solution:
    """A solved one; each test changes it to an unsolved one with a reason."""
    return written_solution(*random_puzzle(np.random.default_rng(1), L=4, d=6, h=9, rows=60))


def unsolved(solution: dropjax.Solution, reason: StopReason, share: float = 0.1) -> dropjax.Solution:
    return replace(solution, outcome=Outcome.NOT_SOLVED, stop_reason=reason, mse_of_variance=share)


def test_a_solution_needs_no_advice(solution: dropjax.Solution):
    assert advice(solution, Options()) == []


ACTIVATION = "- --activation auto: the search took relu for granted"

CASES = [
    (
        StopReason.TIME_LIMIT,
        Options(time_limit=60.0),
        None,
        [
            "- a --time-limit longer than 60 seconds; --checkpoint FILE keeps what a search has found, and --resume goes on "
            "from there",
            ACTIVATION,
        ],
    ),
    (
        StopReason.TIME_LIMIT,
        Options(time_limit=2.5, activation="auto"),
        Path("kept"),
        [
            "- a --time-limit longer than 2.5 seconds with --checkpoint kept --resume: the search goes on where it was "
            "stopped",
        ],
    ),
    (
        StopReason.INTERRUPTED,
        Options(activation="auto"),
        Path("kept"),
        ["- --checkpoint kept --resume: the search goes on where it was stopped"],
    ),
    (
        StopReason.STALLED,
        Options(method="paper", pairing="ddr"),
        None,
        [
            "- --method auto: it goes on where the paper's method ends",
            "- no --pairing: the search then tries other signals where the first leaves pairs in doubt",
            ACTIVATION,
        ],
    ),
    (
        StopReason.STALLED,
        Options(activation="auto"),
        None,
        ["- --time-limit SECONDS: the search then starts again from other orders until the time is up"],
    ),
    (
        StopReason.NOTHING_TO_FIND,
        Options(),
        None,
        [
            "- see whether the table belongs to these pieces: its rows may be of another network, or in another order",
            ACTIVATION,
        ],
    ),
]


@pytest.mark.parametrize(("reason", "options", "checkpoint", "tips"), CASES)
def test_each_end_has_its_own(solution, reason, options, checkpoint, tips):
    assert advice(unsolved(solution, reason), options, checkpoint) == ["", "what to try next:", *tips]


def test_a_given_order_is_the_first_thing_to_leave_out(solution: dropjax.Solution):
    options = Options(activation="auto", initial_order=solution.permutation)
    lines = advice(unsolved(solution, StopReason.STALLED), options)
    assert lines[2] == "- no --initial-order: the search then pairs and orders the pieces by itself"


def test_answers_that_are_not_told_apart_need_another_table(solution: dropjax.Solution):
    lines = advice(unsolved(solution, StopReason.UNTOLD, share=1e-6), Options())
    assert "a table with more rows" in lines[2] and "--pred-decimals K" in lines[3] and len(lines) == 4
    assert len(advice(unsolved(solution, StopReason.UNTOLD, share=1e-6), Options(pred_decimals=2))) == 3
