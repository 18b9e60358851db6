"""Telling pieces apart, checks of arrays, and the two ways of writing an answer."""

import jax.numpy as jnp
import numpy as np
import pytest
from builders import random_puzzle
from hypothesis import given, settings
from hypothesis import strategies as st

from dropjax.core.errors import InputError
from dropjax.core.puzzle import Puzzle
from dropjax.core.stack import forward

SIZES = {"L": st.integers(1, 5), "d": st.integers(2, 6), "h": st.integers(1, 9), "o": st.integers(1, 3)}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), **SIZES)
def test_a_dropped_stack_is_told_apart_and_its_answer_reproduces_pred(seed: int, L: int, d: int, h: int, o: int):
    o = min(o, d - 1)
    puzzle, permutation = random_puzzle(np.random.default_rng(seed), L, d, h, o, rows=4)
    assert (puzzle.depth, puzzle.w_in.shape, puzzle.w_out.shape, puzzle.w_last.shape) == (L, (L, h, d), (L, d, h), (o, d))
    arrangement = puzzle.arrangement(permutation)
    assert puzzle.permutation(arrangement) == permutation
    assert sorted(puzzle.pieces) == sorted(permutation)
    again = Puzzle.from_arrays(puzzle.pieces, puzzle.x, puzzle.pred, puzzle.true, puzzle.roles)
    assert np.array_equal(again.in_numbers, puzzle.in_numbers)
    assert np.array_equal(again.out_numbers, puzzle.out_numbers)


def test_the_right_answer_reproduces_pred_and_a_wrong_one_does_not():
    puzzle, permutation = random_puzzle(np.random.default_rng(3), L=6, o=2)

    def error(numbers):
        return np.abs(
            forward(puzzle.stack().arranged(jnp.asarray(puzzle.arrangement(numbers))), jnp.asarray(puzzle.x)) - puzzle.pred
        ).max()

    swapped = (*permutation[2:4], *permutation[:2], *permutation[4:])
    assert error(permutation) < 1e-5 < 1e-3 < error(swapped)


def test_numbers_may_have_gaps():
    numbers = [7, 3, 100, 41, 999_999_999]
    puzzle, permutation = random_puzzle(np.random.default_rng(0), L=2, numbers=numbers)
    assert sorted(permutation) == sorted(numbers)
    assert puzzle.permutation(puzzle.arrangement(permutation)) == permutation


def pieces(*shapes: tuple[int, int]):
    return {n: (np.ones(shape), np.ones(shape[0])) for n, shape in enumerate(shapes)}


x, pred = np.ones((2, 3)), np.ones(2)
SOUND = pieces((4, 3), (3, 4), (1, 3))

BAD = {
    "no pieces": (({}, x, pred), "expected L of .* got none"),
    "square halves": ((pieces((3, 3), (3, 3), (1, 3)), x, pred), "--roles"),
    "a last layer like an input half": ((pieces((4, 5), (5, 4), (4, 5)), x, pred), "--roles"),
    "one of each and one more": ((pieces((4, 3), (3, 4), (4, 3), (1, 3)), x, pred), r"2 of \[4, 3\]"),
    "a far number": (({**SOUND, 10**8: SOUND[0]}, x, pred), "lacks 3, 4, 5, 6, 7, 8, 9, 10, …"),
    "a negative number": (({**SOUND, -1: SOUND[0]}, x, pred), "piece number"),
    "a name for a number": (({**SOUND, "a": SOUND[0]}, x, pred), "piece number"),
    "text for numbers": (({**SOUND, 0: ("abc", None)}, x, pred), "piece 0: weight: expected real numbers"),
    "ragged": (({**SOUND, 0: ([[1, 2], [3]], None)}, x, pred), "piece 0: weight: expected real numbers"),
    "complex": (({**SOUND, 0: (np.ones((4, 3)) * 1j, None)}, x, pred), "complex128"),
    "a scalar": (({**SOUND, 0: (3.0, None)}, x, pred), r"a matrix \[out, in\], got shape \[\]"),
    "x of words": ((SOUND, [["a"] * 3], pred), "table: x: expected real numbers"),
    "x too deep": ((SOUND, np.ones((2, 3, 1)), pred), r"width 3.*shape \[2, 3, 1\]"),
    "x past float32": ((SOUND, x * 1e39, pred), "x: expected finite numbers, got inf in row 1, column 0"),
    "no rows": ((SOUND, np.ones((0, 3)), np.ones(0)), "at least one row"),
    "too few rows of pred": ((SOUND, x, np.ones(1)), "pred: expected 2 rows"),
    "NaN in true": ((SOUND, x, pred, np.array([1, np.nan])), "true: expected finite numbers, got nan in row 2"),
    "a role too few": ((SOUND, x, pred, None, {0: "in"}), "no role for piece 1"),
    "a role too many": ((SOUND, x, pred, None, dict.fromkeys(range(4), "in")), "piece 3, which is not there"),
    "an unknown role": ((SOUND, x, pred, None, {0: "in", 1: "middle", 2: "last"}), "'middle'"),
    "two last layers": ((SOUND, x, pred, None, {0: "in", 1: "last", 2: "last"}), "got 1, 0 and 2"),
    "roles against shapes": (
        (SOUND, x, pred, None, {0: "out", 1: "in", 2: "last"}),
        r"piece 1: weight: expected shape \[3, 3\] for its role",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_refused_in_one_line(name: str):
    arguments, words = BAD[name]
    with pytest.raises(InputError, match=words) as caught:
        Puzzle.from_arrays(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([0, 1], "expected 3 piece numbers, got 2"),
        ([0, 2, 1], "piece 2, at the end, got 1"),
        ([1, 0, 2], "every input half once, got piece 1"),
        ([7, 1, 2], "every input half once, got piece 7"),
    ],
)
def test_a_permutation_of_other_numbers_is_refused(numbers: list[int], words: str):
    with pytest.raises(InputError, match=words):
        Puzzle.from_arrays(SOUND, x, pred).arrangement(numbers)


def test_the_real_puzzle_is_told_apart(real_puzzle: Puzzle):
    assert real_puzzle.w_in.shape == (48, 96, 48)
    assert real_puzzle.w_last.shape == (1, 48)
    assert real_puzzle.x.shape == (10_000, 48)
    assert real_puzzle.roles is None
    assert real_puzzle.notes == ()


LISTED = [(np.ones((4, 3)), np.ones(4)), (np.ones((3, 4)), np.zeros(3)), (np.ones((1, 3)), np.zeros(1))]


@pytest.mark.parametrize(
    "given",
    [
        LISTED,
        tuple(LISTED),
        {0: LISTED[0], 1: np.ones((3, 4)), 2: (np.ones((1, 3)),)},
        {0: LISTED[0], 1: (np.ones((3, 4)), None), 2: np.ones((1, 3))},
        {0: [np.ma.masked_array(np.ones((4, 3)), mask=False), np.ones(4)], 1: LISTED[1], 2: LISTED[2]},
    ],
    ids=["list", "tuple", "without biases", "an array alone", "nothing masked"],
)
def test_pieces_may_be_listed_and_lack_a_bias(given):
    puzzle = Puzzle.from_arrays(given, x, pred)
    assert sorted(puzzle.pieces) == [0, 1, 2]
    for (weight, bias), (_, wanted) in zip(puzzle.pieces.values(), LISTED, strict=True):
        np.testing.assert_array_equal(weight, np.ones(weight.shape))
        np.testing.assert_array_equal(bias, wanted)


def test_a_weight_of_two_rows_is_not_taken_for_a_weight_and_a_bias():
    pieces = [np.ones((2, 3)), np.ones((3, 2)), np.ones((1, 3))]
    assert Puzzle.from_arrays(pieces, x, pred).w_in.shape == (1, 2, 3)


MISSING = np.ma.masked_array(np.ones((2, 3)), mask=np.eye(2, 3) > 0)
REFUSED = {
    "masked x": ((SOUND, MISSING, pred), "table: x: expected no value missing, got 2 that are masked"),
    "masked pred": ((SOUND, x, np.ma.masked_array([1.0, 2.0], mask=[True, False])), "pred: .* got 1 that are masked"),
    "a masked weight": (({**SOUND, 0: (np.ma.masked_array(np.ones((4, 3)), mask=True), None)}, x, pred), "piece 0: weight"),
    "three parts": (({**SOUND, 0: (1, 2, 3)}, x, pred), r"piece 0: expected \(weight, bias\), got 3 parts"),
    "none": (({**SOUND, 0: None}, x, pred), r"piece 0: expected \(weight, bias\), got a NoneType"),
    "text": (("pieces", x, pred), "pieces: expected pieces by number, or a list of them, got a str"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", REFUSED)
def test_what_stands_for_no_piece_is_refused_in_one_line(name: str):
    arguments, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as caught:
        Puzzle.from_arrays(*arguments)
    assert "\n" not in str(caught.value)
