"""The measure of an answer's errors, output by output."""

import dataclasses

import builders
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dropjax.core.solution import Outcome
from dropjax.core.stack import identity_arrangement
from dropjax.search import yardstick
from dropjax.search.answer import Answer
from dropjax.search.problem import Problem
from dropjax.search.verify import full_pass
from dropjax.search.yardstick import Level, Yardstick, rounded_to


def spread(seed=0, rows=4000, outputs=1, scale=1.0, offset=0.0):
    """Predictions as float32."""
    return (offset + scale * np.random.default_rng(seed).normal(size=(rows, outputs))).astype(np.float32)


@pytest.mark.parametrize("decimals", [0, 2, 4])
def test_decimals_of_rounded_predictions_are_found(decimals):
    values = np.random.default_rng(0).normal(size=(500, 1))
    assert rounded_to(np.round(values, decimals).astype(np.float32)) == decimals
    assert rounded_to(values.astype(np.float32)) is None


def test_exact_is_a_fraction_of_the_spread_whatever_the_offset():
    for pred in (spread(), spread(offset=3.0)):
        rod = Yardstick.of(pred)
        assert rod.exact[0] == pytest.approx(1e-5 * pred.std(), rel=1e-3)
        assert rod.is_exact(np.array([0.99e-5**2]) * pred.var())
        assert not rod.is_exact(np.array([1.02e-5**2]) * pred.var())
        assert rod.pred_noise is None
    # Relative to the RMS, this one would be called exact.
    assert not Yardstick.of(spread(offset=30.0)).is_exact(np.array([1e-4**2]))


def test_where_float32_holds_pred_no_finer_its_last_place_is_the_yardstick_and_that_is_said():
    pred = spread(scale=0.01, offset=300.0)
    rod, last_place = Yardstick.of(pred), 2.0**-15
    assert rod.exact[0] == pytest.approx(last_place / 2)
    assert rod.pred_noise == pytest.approx(last_place / np.sqrt(12))
    assert rod.bound is not None
    np.testing.assert_allclose(rod.bound, last_place / 2)
    assert rod.words is not None
    assert "float32's own rounding" in rod.words
    assert rod.tolerance == pytest.approx((last_place / 2) ** 2)


def test_each_output_has_its_own():
    pred = np.concatenate([spread(1, scale=100.0), spread(2, scale=0.01)], axis=1)
    rod = Yardstick.of(pred)
    np.testing.assert_allclose(rod.exact, 1e-5 * pred.std(axis=0), rtol=1e-3)
    right, wrong = np.array([(1e-4) ** 2, (1e-8) ** 2]), np.array([(1e-8) ** 2, (1e-4) ** 2])
    assert rod.is_exact(right)
    assert not rod.is_exact(wrong)
    # A search that stops at the tolerance has no output beyond its own.
    assert rod.tolerance * 2 <= rod.exact.min() ** 2 * (1 + 1e-9)


def test_noise_of_pred_is_what_rounding_leaves_or_what_was_declared():
    values = np.random.default_rng(0).normal(size=(4000, 1))
    rounded = np.round(values, 3).astype(np.float32)
    assert Yardstick.of(rounded).pred_noise == pytest.approx(np.std(values - rounded), rel=0.05)
    assert Yardstick.of(rounded).words == "pred's rounding to 3 decimals"
    assert Yardstick.of(values.astype(np.float32)).pred_noise is None
    assert Yardstick.of(values.astype(np.float32), decimals=3).pred_noise == pytest.approx(1e-3 / np.sqrt(12))
    assert Yardstick.of(rounded, sigma=0.5).pred_noise == 0.5
    assert Yardstick.of(rounded, sigma=0.5).bound is None


def test_one_output_may_be_rounded_and_another_not():
    pred = np.concatenate([np.round(spread(1), 2), spread(2)], axis=1)
    rod = Yardstick.of(pred)
    np.testing.assert_allclose(rod.noise, [1e-2 / np.sqrt(12), 0])
    assert rod.is_within_noise(np.array([1e-5, 1e-12]), 0.0, 4000)
    assert not rod.is_within_noise(np.array([1e-5, 1e-8]), 0.0, 4000)


def test_within_declared_noise_is_hardly_more_than_it_and_far_below_the_variance():
    rod = Yardstick.of(spread(), sigma=0.1)
    assert rod.is_within_noise(np.array([0.108**2]), 0.0, 4000)
    assert not rod.is_within_noise(np.array([0.112**2]), 0.0, 4000)
    assert rod.is_within_noise(np.array([0.112**2]), 0.0, 50)  # chance
    assert not Yardstick.of(spread(), sigma=0.5).is_within_noise(np.array([0.45**2]), 0.0, 4000)
    assert not Yardstick.of(spread()).is_within_noise(np.array([0.0]), 0.0, 4000)


@pytest.mark.parametrize("pred", [np.full((9, 1), 0.3, np.float32), np.ones((1, 2), np.float32)])
def test_a_pred_without_spread_makes_nothing_exact(pred):
    rod = Yardstick.of(pred)
    assert not rod.spread.any()
    assert not rod.is_exact(np.zeros(pred.shape[1]))
    assert not rod.is_within_noise(np.zeros(pred.shape[1]), 0.0, len(pred))
    assert np.isfinite(rod.tolerance)
    assert np.isfinite(rod.attainable)


def test_a_search_has_nothing_left_to_find_at_the_noise_but_never_near_the_variance():
    assert Yardstick.of(spread(), sigma=0.1).attainable == pytest.approx(0.11**2)
    assert Yardstick.of(spread(), sigma=2.0).attainable == pytest.approx(0.1, rel=0.1)
    assert Yardstick.of(spread()).attainable == Yardstick.of(spread()).tolerance
    assert yardstick.attainable_mse(spread(), 0.1) == pytest.approx(0.11**2)
    assert yardstick.attainable_mse(spread(), None) == Yardstick.of(spread()).tolerance


# Levelled outputs


def uneven(scales, offset=0.0, rows=60):
    puzzle, permutation = builders.random_puzzle(np.random.default_rng(0), L=3, d=6, h=8, o=2, rows=rows)
    scales = np.array(scales)[:, None].astype(np.float32)
    scaled = dataclasses.replace(
        puzzle, w_last=puzzle.w_last * scales, b_last=puzzle.b_last * scales[:, 0] + np.float32(offset),
        pred=(puzzle.pred * scales[:, 0] + np.float32(offset)).astype(np.float32),
    )  # fmt: skip
    return scaled, permutation


def test_outputs_of_one_size_are_left_alone():
    puzzle, _ = uneven([1, 1.5])
    assert Level.of(puzzle, Yardstick.of(puzzle.pred).spread).levelled(puzzle) is puzzle


def test_outputs_are_levelled_without_changing_a_bit_and_back():
    puzzle, permutation = uneven([1, 1000])
    rod = Yardstick.of(puzzle.pred)
    level = Level.of(puzzle, rod.spread)
    levelled = level.levelled(puzzle)
    assert np.ptp(np.log2(levelled.pred.std(axis=0))) <= 1
    np.testing.assert_array_equal(levelled.pred * level.scale.astype(np.float32), puzzle.pred)
    np.testing.assert_allclose(rod.scaled(level.scale).exact, Yardstick.of(levelled.pred).exact, rtol=1e-6)
    arrangement = puzzle.arrangement(permutation)[[1, 0, 2]]
    passed = full_pass(levelled.stack(), arrangement, levelled.x, levelled.pred)
    plain = full_pass(puzzle.stack(), arrangement, puzzle.x, puzzle.pred)
    restored = level.restored(passed)
    np.testing.assert_allclose(restored.by_output, plain.by_output, rtol=1e-4)
    np.testing.assert_allclose(restored.largest, plain.largest, rtol=1e-4)
    np.testing.assert_allclose(restored.outputs, plain.outputs, rtol=1e-4, atol=1e-3)


def test_an_offset_is_taken_off_where_that_is_exact():
    puzzle, _ = uneven([0.01, 0.01], offset=300)
    level = Level.of(puzzle, Yardstick.of(puzzle.pred).spread)
    levelled = level.levelled(puzzle)
    np.testing.assert_array_equal(level.offset, puzzle.b_last)
    np.testing.assert_array_equal(levelled.b_last, 0)
    assert np.abs(levelled.pred).max() < 1
    np.testing.assert_array_equal(levelled.pred.astype(np.float64) + level.offset, puzzle.pred)


# What a table can tell


def test_a_table_of_few_digits_does_not_tell_all_arrangements_apart():
    x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    exact = Yardstick.of(spread(rows=2000))
    tells = lambda rows, error, depth=48: yardstick.tells_enough(depth, x[:rows], exact, np.array([error**2]), 0.0)  # noqa: E731
    # (48!)² has 122 digits, three are to spare, and a row holds seven where the error is 1e-7 of the spread.
    assert tells(18, 1e-7)
    assert not tells(17, 1e-7)
    assert tells(300, 0.3)
    assert not tells(200, 0.3)
    assert not tells(2000, 1.0)
    assert tells(1, 1e-7, depth=2)
    repeated = np.repeat(x[:1], 300, axis=0)
    assert not yardstick.tells_enough(48, repeated, exact, np.array([1e-14]), 0.0)


# Outcomes


def answer(rod: Yardstick, error: float | np.ndarray, pred: np.ndarray) -> Answer:
    """An answer whose outputs miss pred by these errors."""
    rng = np.random.default_rng(0)
    stack = reference.random_stack(rng, 2, 3, 4, 1)
    error = np.broadcast_to(np.float32(error), pred.shape)
    passed = full_pass(stack, np.asarray(identity_arrangement(2)), np.zeros((len(pred), 3), np.float32), pred)
    passed = passed._replace(
        outputs=jnp.asarray(pred + error), by_output=np.mean(error**2, axis=0), largest=np.abs(error).max(axis=0)
    )
    x = np.zeros((len(pred), 3), np.float32)
    return Answer(Problem.of(stack, x, pred), rod, np.asarray(identity_arrangement(2)), passed, 1e-8)


def test_outcomes():
    pred = spread(rows=400)
    plain = Yardstick.of(pred)
    assert answer(plain, 0.9e-5 * pred.std(), pred).outcome is Outcome.EXACT
    assert answer(plain, 1.1e-5 * pred.std(), pred).outcome is Outcome.NOT_SOLVED
    assert answer(plain, np.nan, pred).outcome is Outcome.NOT_SOLVED
    rounded = np.round(pred, 2)
    rod = Yardstick.of(rounded)
    assert answer(rod, 0.0049, rounded).outcome is Outcome.NOISE_FLOOR
    assert answer(rod, 0.0051, rounded).outcome is Outcome.NOT_SOLVED
    one_row = np.zeros_like(pred)
    one_row[7] = 0.0051
    assert answer(rod, one_row, rounded).outcome is Outcome.NOT_SOLVED
    labels = (pred > 0).astype(np.float32)
    assert answer(Yardstick.of(labels), 0.499, labels).outcome is Outcome.NOT_SOLVED
