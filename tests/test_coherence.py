"""Pairs that show in what training moved, and in what they have in common with one another."""

import numpy as np
import pytest
import scipy

from dropjax.pairing import evidence
from dropjax.pairing.coherence import agreement, coherence, fits, products
from dropjax.pairing.evidence import Arrays, observe
from dropjax.pairing.movements import WIDTH, movements, root_mean_square
from dropjax.pairing.portfolio import pair, portfolio
from dropjax.pairing.signals import COHERENCE, SIGNALS


def drawn(rng, L=20, d=24, h=48):
    """Input halves [L, h, d] and output halves [L, d, h], drawn as `torch.nn.Linear` draws."""
    w_in, w_out = (rng.uniform(-1, 1, (L, h, d)) * size**-0.5 for size in (d, h))
    return w_in, np.swapaxes(w_out, 1, 2)


def trained(rng, by, L=20, d=24, h=48):
    """Halves that training moved a little, both halves of a block by the matrix `by` [d, d]."""
    w_in, w_out = drawn(rng, L, d, h)
    return (w_in + np.swapaxes(w_out, 1, 2) @ by).astype(np.float32), (w_out + by @ np.swapaxes(w_in, 1, 2)).astype(
        np.float32
    )


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_movements_of_uniformly_drawn_weights_are_tweedies(size):
    rng = np.random.default_rng(0)
    moved = 0.05
    weights = size * (rng.uniform(-1, 1, (40, 50, 40)) + moved * rng.normal(size=(40, 50, 40)))
    found = movements(weights.astype(np.float32))
    unit = np.sqrt(np.mean((weights / size) ** 2))
    blurred = np.hypot(moved, WIDTH * unit)  # the kernel blurs the density as moving does
    density = lambda w: scipy.stats.norm.cdf((w + 1) / blurred) - scipy.stats.norm.cdf((w - 1) / blurred)  # noqa: E731
    slope = lambda w: (scipy.stats.norm.pdf((w + 1) / blurred) - scipy.stats.norm.pdf((w - 1) / blurred)) / blurred  # noqa: E731
    wanted = -unit * slope(weights / size) / density(weights / size)
    near = np.abs(weights / size) < 1.1
    assert np.sqrt(np.mean((found - wanted)[near] ** 2)) < 0.05 * np.sqrt(np.mean(wanted[near] ** 2))
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99


def test_movements_of_normally_drawn_weights_are_the_weights():
    weights = np.random.default_rng(1).normal(scale=3.0, size=(40, 50, 60)).astype(np.float32)
    found = movements(weights)
    slope, offset = np.polyfit(weights.ravel(), found.ravel(), 1)
    assert abs(slope * 3 * (1 + WIDTH**2) - 1) < 0.02  # the kernel widens the density
    assert abs(offset) < 0.01
    assert np.corrcoef(weights.ravel(), found.ravel())[0, 1] > 0.98


def test_weights_that_are_all_zero_have_not_moved():
    assert not movements(np.zeros((2, 3, 4), np.float32)).any()
    assert np.isfinite(movements(np.full((2, 3, 4), 1e-30, np.float32))).all()


def test_movement_is_what_its_definition_says():
    w_in, w_out = trained(np.random.default_rng(2), -0.05 * np.eye(24))
    seen = next(observe(Arrays(w_in, w_out), shuffles=0))
    theirs = np.swapaxes(w_out, 1, 2)
    of_ours, of_theirs = movements(w_in) / root_mean_square(w_in), movements(theirs) / root_mean_square(theirs)
    wanted = -np.einsum("ihd,jhd->ij", of_ours, theirs) - np.einsum("ihd,jhd->ij", w_in, of_theirs)
    np.testing.assert_allclose(np.asarray(SIGNALS["movement"](seen)), wanted, rtol=1e-3, atol=1e-3)


def test_hidden_units_are_shuffled_in_the_output_halves_and_their_movements():
    w_in, w_out = trained(np.random.default_rng(3), -0.05 * np.eye(24))
    plain, shuffled = observe(Arrays(w_in, w_out), shuffles=1)
    order = np.concatenate([shuffled.order, 48 + shuffled.order])
    assert plain.moved is not None and shuffled.moved is not None
    np.testing.assert_array_equal(shuffled.moved[0], plain.moved[0])
    np.testing.assert_array_equal(shuffled.moved[1], plain.moved[1][:, order])
    np.testing.assert_array_equal(plain.moved[0][:, 48:], movements(w_in))


@pytest.mark.parametrize(("of_in", "of_out"), [(1e8, 1e8), (1e8, 1e-8), (0.0, 1.0)])
def test_halves_of_any_size_have_finite_scores(of_in, of_out):
    w_in, w_out = trained(np.random.default_rng(3), -0.05 * np.eye(24), L=6)
    found = portfolio(Arrays(np.float32(of_in) * w_in, np.float32(of_out) * w_out), ("movement", COHERENCE))
    assert np.isfinite(found.score).all()


def test_agreement_is_with_the_sum_of_the_other_pairs_products():
    rng = np.random.default_rng(4)
    ours, theirs = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    partners = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 4, 3], [4, 0, 1, 2, 3]])
    found = np.asarray(agreement(products(ours, theirs), partners))
    product = lambda i, j: theirs[j].T.astype(np.float64) @ ours[i]  # noqa: E731
    for partner, of_choice in zip(partners, found, strict=True):
        for i in range(5):
            for j in range(5):
                others = sum(product(k, partner[k]) for k in range(5) if k != i and partner[k] != j)
                np.testing.assert_allclose(of_choice[i, j], (product(i, j) * others).sum(), rtol=1e-4, atol=1e-4)


def test_agreement_is_looked_for_where_all_products_fit_into_memory():
    needed = 4 * 20**2 * (24**2 + 2 * 20)
    assert fits(20, 24, needed)
    assert not fits(20, 24, needed - 1)
    w_in, w_out = trained(np.random.default_rng(5), 0.03 * np.random.default_rng(5).normal(size=(24, 24)))
    halves = Arrays(w_in, w_out)
    assert COHERENCE in portfolio(halves, memory=needed).separations
    assert COHERENCE not in portfolio(halves, memory=needed - 1).separations
    with pytest.raises(ValueError, match="expected one that products of d = 24 allow, got coherence"):
        portfolio(halves, (COHERENCE,), memory=needed - 1)


def test_agreement_pairs_what_traces_cosines_and_norms_do_not():
    rng = np.random.default_rng(5)
    w_in, w_out = trained(rng, 0.03 * rng.normal(size=(24, 24)))
    order = rng.permutation(20)
    found = {name: portfolio(Arrays(w_in, w_out[order]), (name,)) for name in ("movement", "cosines", "norms", COHERENCE)}
    right = {name: int(np.sum(order[of.partner] == np.arange(20))) for name, of in found.items()}
    assert right.pop(COHERENCE) == 20
    assert max(right.values()) < 10
    assert found[COHERENCE].verdict != "no signal"
    auto = pair(w_in, w_out[order], signal="auto")
    np.testing.assert_array_equal(order[auto.partner], np.arange(20))


def test_a_trace_and_agreement_help_one_another():
    rng = np.random.default_rng(6)
    w_in, w_out = trained(rng, 0.02 * rng.normal(size=(24, 24)) - 0.01 * np.eye(24))
    order = rng.permutation(20)
    by_trace = pair(w_in, w_out[order], signal="movement")
    together = pair(w_in, w_out[order], signal=COHERENCE)
    assert (order[by_trace.partner] != np.arange(20)).any()
    np.testing.assert_array_equal(order[together.partner], np.arange(20))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_halves_that_were_only_drawn_agree_no_more_than_shuffled_ones(seed):
    found = portfolio(Arrays(*(half.astype(np.float32) for half in drawn(np.random.default_rng(seed)))), (COHERENCE,))
    assert found.verdict == "no signal"


@pytest.mark.parametrize("L", [1, 2, 3])
def test_very_few_halves_agree(L):
    w_in, w_out = trained(np.random.default_rng(7), -0.1 * np.eye(24), L=L)
    seen = next(observe(Arrays(w_in, w_out), shuffles=0))
    assert seen.moved is not None and np.isfinite(coherence(*seen.moved)).all()


def test_of_too_many_weights_movements_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(evidence, "MOVED", 1000)
    w_in, w_out = trained(np.random.default_rng(8), -0.1 * np.eye(24), L=6)
    assert "movement" not in portfolio(Arrays(w_in, w_out)).separations
    for signal in ("movement", COHERENCE):
        with pytest.raises(ValueError, match="products of d = 24 allow"):
            pair(w_in, w_out, signal=signal)
