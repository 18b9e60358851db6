import jax
import numpy as np
import pytest
import reference
import scipy.stats
from hypothesis import given, settings

from dropjax.moves.first_order import flips, flips_and_swaps, linearise
from dropjax.ordering import places
from dropjax.ordering.places import Linear, Places

# What places say of pairs


def test_the_chance_of_standing_the_wrong_way_round_is_that_of_drawn_places():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6)) + 2 * np.eye(6)
    mean, covariance = np.sort(rng.uniform(0, 6, size=6)), root @ root.T
    drawn = rng.multivariate_normal(mean, covariance, size=400_000)
    pairs = places.precedence(mean, covariance)
    assert pairs.probability.shape == (6, 5)
    for i in range(6):
        for j in range(i + 1, 6):
            wrong = drawn[:, i] > drawn[:, j]
            of = i, j - i - 1
            assert pairs.probability[of] == pytest.approx(wrong.mean(), abs=4e-3)
            # The best linear estimate of the event by the two places has this slope, and leaves this variance.
            apart = drawn[:, i] - drawn[:, j]
            slope = np.cov(wrong, apart)[0, 1] / apart.var()
            assert pairs.slope[of] == pytest.approx(slope, abs=4e-3)
            assert pairs.variance[of] == pytest.approx(np.var(wrong - slope * apart), abs=4e-3)
    assert (pairs.probability[5] == 0).all(), "nothing stands behind the last block"


def test_places_known_for_certain_are_still_unsure_between_their_neighbours():
    pairs = places.precedence(np.arange(30.0), np.zeros((30, 30)))
    assert pairs.probability.shape == (30, places.REACHES[0])
    assert 0.05 < pairs.probability[0, 0] < 0.1
    assert pairs.probability[0, 4] < 1e-6


def test_the_reach_grows_with_what_is_unknown():
    reaches = [places.precedence(np.arange(400.0), of**2 * np.eye(400)).slope.shape[1] for of in (1, 10, 50, 1000)]
    assert reaches == sorted(reaches)
    assert reaches[-1] == places.REACHES[-1]


# The linear model


@pytest.mark.slow
@pytest.mark.parametrize("exact", [0, 100], ids=["flips", "exact neighbours"])
@settings(max_examples=2, deadline=None)  # each compiles anew
@given(seed=reference.seeds)
def test_the_model_is_the_sum_over_all_flips(exact, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "EXACT", exact)
        patch.setattr(places, "REACHES", (4,))
        jax.clear_caches()
        rng = np.random.default_rng(seed)
        depth, rows, outputs = 11, 7, 2
        stack, arrangement = reference.random_stack(rng, depth, 5, 8, outputs), reference.random_arrangement(rng, depth)
        x, pred = (rng.normal(size=(rows, of)).astype(np.float32) for of in (5, outputs))
        pairs = places.precedence(np.sort(rng.uniform(0, depth, size=depth)), np.diag(rng.uniform(1, 9, size=depth)))
        at = linearise(stack, arrangement, x)
        delta = np.asarray(flips_and_swaps(stack, arrangement, at) if exact else flips(at), np.float64)
        delta = delta.reshape(rows * outputs, depth, depth)
        effect, shift = np.zeros((rows * outputs, depth)), np.zeros(rows * outputs)
        noise, expected = np.zeros((rows * outputs, rows * outputs)), 0.0
        for i in range(depth):
            for j in range(i + 1, min(depth, i + 5)):
                flip, of = delta[:, i, j], (i, j - i - 1)
                effect[:, i] += pairs.slope[of] * flip
                effect[:, j] -= pairs.slope[of] * flip
                shift += pairs.probability[of] * flip
                noise += pairs.variance[of] * np.outer(flip, flip)
                expected += pairs.probability[of] * np.mean(flip**2)
        error = reference.outputs(stack, arrangement, x) - pred
        for memory in (1, 1 << 30):
            found = places.linear_model(stack, arrangement, x, pred, pairs, memory)
            np.testing.assert_allclose(found.effect, effect, atol=1e-5)
            np.testing.assert_allclose(found.shift, shift, atol=1e-5)
            np.testing.assert_allclose(found.noise, noise, atol=1e-5)
            np.testing.assert_allclose(found.error, error.reshape(-1), atol=1e-4)
            assert float(found.expected) == pytest.approx(expected, rel=1e-4)
        jax.clear_caches()


# The posterior


def drawn_linear(rng, depth=5, count=40):
    """A linear model, and errors as its own places and noise give them."""
    effect, root = rng.normal(size=(count, depth)), rng.normal(size=(count, count)) / count**0.5
    shift, truth = rng.normal(size=count), np.arange(depth) + rng.normal(size=depth)
    here = Places(np.arange(depth) * 1.0, np.eye(depth))
    error = -(shift + effect @ (truth - here.mean) + root @ rng.normal(size=count))
    return Linear(effect, shift, root @ root.T, error, np.float64(1)), here, truth


def test_the_posterior_is_that_of_least_squares():
    rng = np.random.default_rng(1)
    linear, here, truth = drawn_linear(rng)
    prior = np.arange(5) + 0.3
    found = places.posterior(prior, 4.0, here, linear)
    noise = linear.noise + places.WHITE[0] * np.mean(np.diag(linear.noise)) * np.eye(40)
    inverse = np.linalg.inv(noise)
    precision = linear.effect.T @ inverse @ linear.effect + np.eye(5) / 4
    seen = -linear.error - linear.shift + linear.effect @ here.mean
    mean = np.linalg.solve(precision, linear.effect.T @ inverse @ seen + prior / 4)
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(precision), atol=1e-8)
    assert np.abs(found.mean - truth).max() < 0.5


def test_errors_that_the_model_does_not_explain_are_believed_less():
    rng = np.random.default_rng(2)
    linear, here, _ = drawn_linear(rng)
    believed = places.posterior(here.mean, 4.0, here, linear)
    strange = linear._replace(error=linear.error + 30 * rng.normal(size=40))
    found = places.posterior(here.mean, 4.0, here, strange)
    assert np.trace(found.covariance) > 3 * np.trace(believed.covariance)
    assert np.abs(found.mean - here.mean).max() < 8


def test_without_flips_nothing_is_learned():
    linear, here, _ = drawn_linear(np.random.default_rng(3))
    nothing = linear._replace(effect=0 * linear.effect, noise=0 * linear.noise)
    found = places.posterior(here.mean, 4.0, here, nothing)
    np.testing.assert_array_equal(found.mean, here.mean)
    np.testing.assert_array_equal(found.covariance, 4 * np.eye(5))


# What is unknown at the start


def test_the_evidence_is_largest_at_the_variance_that_the_places_have():
    rng = np.random.default_rng(4)
    effect, root = rng.normal(size=(300, 60)), rng.normal(size=(300, 300)) / 300**0.5
    for variance in (0.3, 30.0):
        error = effect @ (variance**0.5 * rng.normal(size=60)) + root @ rng.normal(size=300)
        linear = Linear(effect, np.zeros(300), root @ root.T, error, np.float64(1))
        tried = variance * np.array([0.25, 1.0, 4.0])
        assert np.argmax([places.log_evidence(of, linear) for of in tried]) == 1


def test_the_evidence_is_a_density():
    rng = np.random.default_rng(5)
    linear, _, _ = drawn_linear(rng)
    modelled = 2.0 * linear.effect @ linear.effect.T + linear.noise
    densities = [
        scipy.stats.multivariate_normal(-linear.shift, modelled + white * np.mean(linear.error**2) * np.eye(40))
        for white in places.TRIED
    ]
    wanted = max(density.logpdf(linear.error) for density in densities) + 20 * np.log(2 * np.pi)
    assert places.log_evidence(2.0, linear) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [3.0, 12.0])
def test_a_start_is_as_uncertain_as_its_errors_say(deviation):
    rng = np.random.default_rng(6)
    stack, truth = reference.random_stack(rng, 96, 8, 12, 1, size=0.02), reference.random_arrangement(rng, 96)
    x = rng.normal(size=(400, 8)).astype(np.float32)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    start = truth[np.argsort(np.arange(96) + deviation * rng.normal(size=96), kind="stable")]
    found = places.likeliest_deviation(stack, start, x, pred)
    assert deviation / 1.5 < found < 4 * deviation
    assert found <= 96 / 12**0.5


def test_a_start_whose_outputs_overflow_is_not_known_at_all():
    rng = np.random.default_rng(7)
    stack, start = reference.random_stack(rng, 6, 5, 8, 1, size=1e30), reference.random_arrangement(rng, 6)
    x, pred = rng.normal(size=(50, 5)).astype(np.float32), np.zeros((50, 1), np.float32)
    assert places.likeliest_deviation(stack, start, x, pred) == 6 / 12**0.5


# Whole searches


def searched(stack, start, x, pred, most=30):
    """The best order of up to `most` rounds, and the last state."""
    at = places.start_placing(stack, start, x, pred)
    while at.rounds < most and not at.ended and at.mse > 1e-9:
        at = places.placing_round(stack, start, at, x, pred)
    return start[at.order], at


@pytest.mark.slow
def test_an_order_with_every_block_off_its_place_is_put_right():
    rng = np.random.default_rng(5)
    stack, truth = reference.random_stack(rng, 24, 8, 12, 2, size=0.1), reference.random_arrangement(rng, 24)
    x = rng.normal(size=(400, 8)).astype(np.float32)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    start = truth[np.argsort(np.arange(24) + 2.5 * rng.normal(size=24), kind="stable")]
    assert (start != truth).any(axis=1).sum() > 12
    order, at = searched(stack, start, x, pred)
    np.testing.assert_array_equal(order, truth)
    assert at.rounds < 15


def test_a_search_that_is_stuck_looks_finer():
    rng = np.random.default_rng(8)
    stack, start = reference.random_stack(rng, 12, 8, 12, 1, size=0.1), reference.random_arrangement(rng, 12)
    x, pred = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(300, 1)).astype(np.float32)
    at = places.start_placing(stack, start, x, pred)._replace(waited=places.STUCK - 1, mse=0.0)
    stuck = places.placing_round(stack, start, at, x, pred)
    assert (at.fine, stuck.waited, stuck.fine) == (1.0, places.STUCK, places.FINER)
    assert places.placing_round(stack, start, stuck, x, pred).fine == places.FINER


@pytest.mark.slow
def test_predictions_of_another_network_end_it():
    rng = np.random.default_rng(6)
    stack, start = reference.random_stack(rng, 12, 8, 12, 1, size=0.1), reference.random_arrangement(rng, 12)
    x = rng.normal(size=(300, 8)).astype(np.float32)
    pred = rng.normal(size=(300, 1)).astype(np.float32)
    order, at = searched(stack, start, x, pred, most=200)
    assert at.ended
    assert at.mse > 0.1
    assert sorted(order[:, 0]) == list(range(12))


def test_outputs_that_overflow_end_it():
    rng = np.random.default_rng(7)
    stack, start = reference.random_stack(rng, 6, 5, 8, 1, size=1e30), reference.random_arrangement(rng, 6)
    x, pred = rng.normal(size=(50, 5)).astype(np.float32), np.zeros((50, 1), np.float32)
    at = places.placing_round(stack, start, places.start_placing(stack, start, x, pred), x, pred)
    assert at.ended
