import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path

import choix
import evalica
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from dropjax.ordering import bradley_terry
from dropjax.ordering.bradley_terry import FitOutcome, fit, log_soft_wins, transitivity


def random_gaps(n: int, seed: int, spread: float = 1.0, noise: float = 1.0) -> np.ndarray:
    """Gaps of planted strengths, and noise."""
    rng = np.random.default_rng(seed)
    strengths, errors = spread * rng.normal(size=n), noise * rng.normal(size=(n, n))
    return strengths[:, None] - strengths + errors - errors.T


def random_wins(n: int, seed: int) -> np.ndarray:
    """Logarithms of counts, many pairs never compared, all of them linked by a ring."""
    rng = np.random.default_rng(seed)
    wins = rng.integers(0, 9, (n, n)) * (rng.random((n, n)) < 0.5)
    wins[np.arange(n), np.arange(n) - 1] += 1
    return logarithms(wins)


def logarithms(wins) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(wins, float))


def surplus(log_wins: np.ndarray, log_strengths: np.ndarray) -> np.ndarray:
    """The gradient of the likelihood: wins minus expected wins."""
    wins = np.exp(log_wins)
    np.fill_diagonal(wins, 0)
    return (wins - (wins + wins.T) * expit(log_strengths[:, None] - log_strengths)).sum(axis=1)


def reference_mm(wins: np.ndarray, iterations: int) -> np.ndarray:
    """Eq. 9 as it is printed."""
    s = np.ones(len(wins))
    for _ in range(iterations):
        s = wins.sum(axis=1) / ((wins + wins.T) / (s[:, None] + s)).sum(axis=1)
    return np.log(s) - np.log(s).mean()


def largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


seeds = st.integers(0, 2**32 - 1)


def test_soft_wins_are_the_sigmoid_in_logs():
    gaps = np.array([[0.0, 0.3], [-0.3, 0.0]])
    log_wins = log_soft_wins(gaps, 0.1)
    np.testing.assert_allclose(np.exp(log_wins), [[0, 1 / (1 + np.exp(-3))], [1 / (1 + np.exp(3)), 0]], rtol=1e-12)
    assert log_wins.dtype == np.float64


def test_soft_wins_do_not_underflow():
    log_wins = log_soft_wins(np.array([[0, 0.593], [-0.593, 0]]), 1e-6)
    np.testing.assert_allclose([log_wins[0, 1], log_wins[1, 0]], [0, -593_000])


@pytest.mark.parametrize("temperature", [0, -1, np.nan])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        log_soft_wins(np.zeros((2, 2)), temperature)


@settings(max_examples=25, deadline=None)
@given(n=st.sampled_from([2, 3, 5, 12]), seed=seeds, counts=st.booleans())
def test_fits_agree_with_choix_and_meet_the_likelihood_equations(n, seed, counts):
    log_wins = random_wins(n, seed) if counts else log_soft_wins(random_gaps(n, seed), 1)
    wins = np.exp(log_wins) * (1 - np.eye(n))
    expected = choix.ilsr_pairwise_dense(wins, max_iter=100_000, tol=1e-12)
    for solver in ("newton", "mm"):
        fitted = fit(log_wins, solver, tolerance=1e-12 if solver == "mm" else 1e-8)
        assert fitted.converged, fitted
        assert largest(surplus(log_wins, fitted.log_strengths)) <= 1e-7
        assert fitted.residual == pytest.approx(largest(surplus(log_wins, fitted.log_strengths)), abs=1e-12)
        np.testing.assert_allclose(fitted.log_strengths, expected - expected.mean(), atol=1e-6)
        assert abs(fitted.log_strengths.mean()) < 1e-12


def test_fits_agree_with_evalica():
    log_wins = log_soft_wins(random_gaps(20, seed=1), 1)
    winners, losers = np.nonzero(np.exp(log_wins))
    weights = np.exp(log_wins[winners, losers]).tolist()
    first = [evalica.Winner.X] * len(weights)
    theirs = evalica.bradley_terry(winners.tolist(), losers.tolist(), first, weights=weights, tolerance=1e-12, limit=10_000)
    expected = np.log(theirs.scores.sort_index().to_numpy())
    np.testing.assert_allclose(fit(log_wins).log_strengths, expected - expected.mean(), atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(n=st.sampled_from([2, 3, 5, 12]), seed=seeds, iterations=st.integers(0, 30))
def test_mm_repeats_equation_9(n, seed, iterations):
    log_wins = random_wins(n, seed)
    fitted = fit(log_wins, "mm", tolerance=0, max_iterations=iterations)
    np.testing.assert_allclose(
        fitted.log_strengths, reference_mm(np.exp(log_wins) * (1 - np.eye(n)), iterations), atol=1e-10
    )
    assert fitted.iterations == iterations
    assert fitted.outcome is FitOutcome.NOT_CONVERGED


def test_mm_in_logs_where_strengths_leave_float64():
    # Two in a row that win by 3,000 nats: the second item's share is far below the smallest float64.
    gaps = np.array([[0, 3000.0, 6000], [-3000, 0, 3000], [-6000, -3000, 0]])
    fitted = fit(log_soft_wins(gaps, 1), "mm", max_iterations=50)
    assert np.isfinite(fitted.log_strengths).all()
    assert bradley_terry.order(fitted).tolist() == [0, 1, 2]


@pytest.mark.parametrize("shift", [695, 760])
def test_mm_in_logs_equals_mm_without(shift):
    log_wins = log_soft_wins(random_gaps(6, seed=2), 1)
    plain = fit(log_wins, "mm", 0, 40).log_strengths
    # Games so rare that their number does not fit beside the strengths send the same iteration through logs.
    np.testing.assert_allclose(fit(log_wins - shift, "mm", 0, 40).log_strengths, plain, atol=1e-10)


def test_mm_without_logs_has_room_on_both_sides():
    gap = 1050.0  # exp(±525) is a float64, exp(±1050) is none
    fitted = fit(log_soft_wins(np.array([[0, gap], [-gap, 0]]), 1), "mm", max_iterations=5)
    np.testing.assert_allclose(fitted.log_strengths, [gap / 2, -gap / 2], atol=1e-6)


@pytest.mark.parametrize("n", [2, 48])
def test_newton_at_the_largest_gaps(n):
    strengths = np.linspace(593, 0, n)
    fitted = fit(log_soft_wins(strengths[:, None] - strengths, 1))
    assert fitted.converged
    np.testing.assert_allclose(fitted.log_strengths, strengths - strengths.mean(), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_newton_begins_near_the_end_of_dense_wins(seed):
    assert fit(log_soft_wins(random_gaps(48, seed=seed), 1)).iterations <= 5  # six or seven from equal strengths


def test_newton_over_47_nats_of_noisy_gaps():
    gaps = random_gaps(48, seed=3, spread=15, noise=5)
    fitted = fit(log_soft_wins(gaps, 1))
    assert fitted.converged
    assert np.ptp(fitted.log_strengths) > 47
    assert largest(surplus(log_soft_wins(gaps, 1), fitted.log_strengths)) < 1e-12


@pytest.mark.parametrize("temperature", [1e-3, 1e-5, 1e-8])
def test_gaps_beyond_float64_are_not_nan(temperature):
    for solver in ("newton", "mm"):
        fitted = fit(log_soft_wins(random_gaps(12, seed=4), temperature), solver, max_iterations=300)
        assert fitted.outcome is FitOutcome.NOT_CONVERGED
        assert np.isfinite(fitted.log_strengths).all()
        assert np.isfinite(fitted.residual)


def test_newton_on_counts_over_many_orders_of_magnitude():
    for seed in range(20):
        log_wins = 15 * np.random.default_rng(seed).normal(size=(4, 4))
        fitted = fit(log_wins)
        assert fitted.converged, (seed, fitted)
        assert largest(surplus(log_wins, fitted.log_strengths)) <= 1e-12 * np.exp(log_wins.max())


@pytest.mark.parametrize(("n", "scale", "seed"), [(6, 15, 27), (6, 8, 2), (4, 15, 38), (4, 8, 38)])
def test_newton_takes_shorter_steps_where_whole_ones_overshoot(n, scale, seed):
    log_wins = scale * np.random.default_rng(seed).normal(size=(n, n))
    fitted = fit(log_wins)
    assert fitted.converged and fitted.iterations <= 20
    assert largest(surplus(log_wins, fitted.log_strengths)) <= 1e-12 * np.exp(log_wins.max())


def test_newton_on_a_chain_of_lopsided_pairs():
    # Item 1 loses to one rival and beats the other: its total says nothing of how strong they are.
    log_wins = logarithms([[0, 10**9, 0, 0], [1, 0, 1, 0], [0, 10**6, 0, 10**9], [0, 0, 1, 0]])
    fitted = fit(log_wins)
    assert fitted.converged
    np.testing.assert_allclose(np.diff(fitted.log_strengths), np.log([1e-9, 1e6, 1e-9]), atol=1e-6)


@pytest.mark.parametrize("solver", ["newton", "mm"])
@pytest.mark.parametrize(
    "wins, outcome",
    [
        ([[0, 3], [0, 0]], FitOutcome.SEPARABLE),
        ([[0, 1, 1], [1, 0, 1], [0, 0, 0]], FitOutcome.SEPARABLE),
        ([[0, 0], [0, 0]], FitOutcome.DISCONNECTED),
        ([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], FitOutcome.DISCONNECTED),
    ],
)
def test_no_maximum_has_its_outcome(solver, wins, outcome):
    fitted = fit(logarithms(wins), solver)
    assert fitted.outcome is outcome
    assert not fitted.converged
    assert fitted.log_strengths.tolist() == [0] * len(wins)
    assert np.isfinite(fitted.residual)


@pytest.mark.parametrize("solver", ["newton", "mm"])
def test_one_item_alone(solver):
    fitted = fit(np.zeros((1, 1)), solver)
    assert (fitted.converged, fitted.log_strengths.tolist(), fitted.residual) == (True, [0], 0)


@pytest.mark.parametrize("log_wins", [np.zeros((2, 3)), np.zeros((0, 0)), np.full((2, 2), np.nan), np.full((2, 2), np.inf)])
@pytest.mark.usefixtures("unchecked")
def test_bad_wins_are_refused(log_wins):
    with pytest.raises(ValueError, match="log_wins"):
        fit(log_wins)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="solver"):
        fit(np.zeros((2, 2)), "bfgs")  # pyright: ignore[reportArgumentType]


def test_order_is_strongest_first():
    strengths = np.random.default_rng(5).permutation(9)
    fitted = fit(log_soft_wins(np.subtract.outer(strengths, strengths), 1))
    assert strengths[bradley_terry.order(fitted)].tolist() == sorted(strengths, reverse=True)


@pytest.mark.parametrize("solver", ["newton", "mm"])
def test_a_second_fit_compiles_nothing_and_x64_stays_off(solver, caplog):
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, "jax"):
        fit(log_soft_wins(random_gaps(7, seed=6), 1), solver)
        assert "XLA compilation" in caplog.text
        caplog.clear()
        fit(log_soft_wins(random_gaps(7, seed=7), 0.5), solver, tolerance=1e-6, max_iterations=77)
        assert not caplog.messages
    assert jax.numpy.zeros(1).dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 9), seed=seeds, ties=st.booleans())
def test_transitivity_is_what_counting_finds(n, seed, ties):
    gaps = random_gaps(n, seed, spread=0.5)
    gaps = np.round(gaps) if ties else gaps
    places = np.random.default_rng(seed).permutation(n)
    triples = list(itertools.permutations(range(n), 3))
    violating = sum(gaps[a, b] > 0 and gaps[b, c] > 0 and not gaps[a, c] > 0 for a, b, c in triples)
    cycles = [
        t for t in triples if t[0] == min(t) and gaps[t[0], t[1]] > 0 and gaps[t[1], t[2]] > 0 and gaps[t[2], t[0]] > 0
    ]

    found = transitivity(gaps, places)
    assert found.violating_triples == violating
    assert found.three_cycles == len(cycles)
    assert [tuple(m) for m in found.members.tolist()] == cycles
    assert found.margins.tolist() == [min(abs(gaps[a, b]), abs(gaps[b, c]), abs(gaps[c, a])) for a, b, c in cycles]
    assert found.spans is not None
    assert found.spans.tolist() == [max(places[list(t)]) - min(places[list(t)]) for t in cycles]
    pairs = [abs(gaps[a, b]) for a, b in itertools.combinations(range(n), 2)]
    np.testing.assert_equal(found.median_margin_all, np.median(pairs) if pairs else np.nan)
    np.testing.assert_equal(found.median_margin_cycles, np.median(found.margins) if cycles else np.nan)
    if not ties:
        assert violating == 3 * len(cycles)


def test_places_are_optional():
    assert transitivity(random_gaps(5, seed=8)).spans is None


def test_the_module_needs_neither_of_its_rivals():
    rivals = "{'choix', 'evalica', 'pandas', 'torch', 'matplotlib'}"
    code = f"import sys, dropjax.ordering.bradley_terry; print(*{rivals} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.slow
def test_the_benchmark_brings_all_to_the_same_strengths(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "bradley_terry.py"
    command = [sys.executable, script, "--n", "20", "--repeats", "1", "--json", tmp_path / "report.json"]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {"dropjax newton", "dropjax mm", "choix ilsr", "evalica"} <= {row["solver"] for row in rows}
    assert all(row["residual"] <= 1e-8 and row["difference"] <= 1e-6 for row in rows)
