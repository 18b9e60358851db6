import numpy as np
import pytest
import reference
import scipy

from dropjax.core.solution import Pairing
from dropjax.ordering import peeling, regressions
from dropjax.ordering.peeling import ahead, fit, matched, peel, start_peeling, support
from dropjax.ordering.regressions import Design, ridge_regression
from dropjax.pairing.certainty import log_odds
from dropjax.runtime import mesh
from dropjax.search.order_rungs import ByFlips
from dropjax.search.peeling_rung import ByPeeling
from dropjax.search.problem import Table
from dropjax.search.rungs import Ground, climb

L, D, H, ROWS = 6, 5, 9, 800


def planted(seed, outputs=1, rows=ROWS, depth=L, size=0.5):
    """A stack with no sign of pairs or depth in its weights, its truth, and its table."""
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, depth, D, H, outputs, size=size)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    truth = reference.random_arrangement(rng, depth)
    return stack, truth, x, reference.outputs(stack, truth, x).astype(np.float32)


def columns_of(stack, left, x):
    """The regression's columns in plain NumPy: the states, then each half's hidden activations."""
    x = np.asarray(x, np.float64)
    w_in, b_in = np.asarray(stack.w_in, np.float64), np.asarray(stack.b_in, np.float64)
    hidden = np.concatenate([np.maximum(x @ w_in[i].T + b_in[i], 0) for i in left], axis=1)
    states, hidden = x - x.mean(axis=0), hidden - hidden.mean(axis=0)
    scales = regressions.LOOSE / np.sqrt(np.mean(states**2)), 1 / np.sqrt(np.mean(hidden**2))
    return np.concatenate([scales[0] * states, scales[1] * hidden], axis=1), scales


def refit(columns, target, ridge):
    """The ridge regression's coefficients and penalised sum of squares."""
    coefficients = np.linalg.solve(columns.T @ columns + ridge * np.eye(columns.shape[1]), columns.T @ target)
    return coefficients, np.sum((target - columns @ coefficients) ** 2) + ridge * np.sum(coefficients**2)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("rows", [ROWS, 40], ids=["more rows", "more columns"])
def test_a_gain_is_what_leaving_the_half_out_costs(outputs, rows):
    stack, _, x, pred = planted(0, outputs, rows)
    halves = [4, 0, 3, 1]
    left = np.array([[i, i] for i in halves] + [[-1, -1]], np.int32)
    found = fit(stack, left, x, pred)
    columns, _ = columns_of(stack, halves, x)
    target = pred - x @ stack.w_last.T - stack.b_last
    target = (target - target.mean(axis=0)).astype(np.float64)
    coefficients, whole = refit(columns, target, float(found.ridge))
    np.testing.assert_allclose(found.noise * target.size, whole, rtol=1e-3)
    np.testing.assert_allclose(found.coefficients[: len(coefficients)], coefficients, atol=2e-3 * abs(coefficients).max())
    assert found.gains[4] == 0, "no block explains nothing"
    for k in range(4):
        others = np.delete(columns, np.arange(D + k * H, D + (k + 1) * H), axis=1)
        assert float(found.gains[k]) == pytest.approx(refit(others, target, float(found.ridge))[1] - whole, rel=0.02)


@pytest.mark.parametrize("rows", [60, 12], ids=["more rows", "more columns"])
def test_the_evidence_is_the_density_of_the_target(rows):
    rng = np.random.default_rng(1)
    columns, target, ridge = rng.normal(size=(rows, 20)), rng.normal(size=(rows, 2)), 3.0
    gram = columns @ columns.T if rows < 20 else columns.T @ columns

    def found(target):
        seen = Design(*(np.asarray(a, np.float32) for a in (columns, target, np.ones(2))))
        return float(ridge_regression(seen, np.asarray(gram, np.float32), np.float32(ridge)).evidence)

    def expected(target):
        covariance = np.eye(rows) + columns @ columns.T / ridge
        variance = np.sum(target * np.linalg.solve(covariance, target)) / target.size
        return -target.size * np.log(variance) / 2 - np.linalg.slogdet(covariance)[1]

    other = target + columns[:, :1]
    assert found(target) == pytest.approx(expected(target), abs=1e-3)
    assert found(other) - found(target) == pytest.approx(expected(other) - expected(target), abs=1e-3)


@pytest.mark.parametrize("rows", [ROWS, 40], ids=["more rows", "more columns"])
def test_support_is_the_posterior_density_of_the_shared_slope_over_its_prior_density(rows):
    stack, _, x, pred = planted(2, 2, rows)
    halves = [5, 2, 0]
    found = fit(stack, np.array([[i, i] for i in halves], np.int32), x, pred)
    columns, (by_state, by_hidden) = columns_of(stack, halves, x)
    ridge, noise = float(found.ridge), float(found.noise)
    covariance = noise * np.linalg.inv(columns.T @ columns + ridge * np.eye(columns.shape[1]))
    coefficients = np.asarray(found.coefficients, np.float64)
    table = np.asarray(support(stack, found))
    w_last = np.asarray(stack.w_last, np.float64)

    def log_density(missed, covariance):
        quadratic = np.sum(missed * np.linalg.solve(covariance, missed))
        return -(quadratic + missed.shape[1] * np.linalg.slogdet(covariance)[1]) / 2

    for k in range(3):
        for j in range(L):
            through = np.asarray(stack.w_out[j], np.float64).T
            equation = np.zeros((H, columns.shape[1]))
            equation[:, :D], equation[:, D + k * H : D + (k + 1) * H] = -by_state * through, by_hidden * np.eye(H)
            at = -through @ w_last.T
            posterior = log_density(equation @ coefficients + at, equation @ covariance @ equation.T)
            prior = log_density(at, noise / ridge * equation @ equation.T)
            assert table[k, j] == pytest.approx(posterior - prior, rel=0.02, abs=0.3)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_at_the_true_states_the_true_next_block_and_partners_come_first(seed):
    stack, truth, x, pred = planted(seed)
    none, ranks = np.full(L, -1), []
    for k, state in enumerate(reference.states(stack, truth, x)[: L - 1]):
        here = state.astype(np.float32)
        rest = np.stack([truth[k:, 0], np.roll(truth[k:, 1], 1)], axis=1)
        if k >= L // 2:
            np.testing.assert_array_equal(matched(stack, rest, none, here, pred), truth[k:])
        left = np.concatenate([truth[k:], [[-1, -1]]]).astype(np.int32)
        ridges, basis = np.full(len(left), 1e-4, np.float32), np.eye(D, dtype=np.float32)
        evidence = mesh.fetch(ahead(stack, left, here, pred, basis, ridges, np.arange(len(left), dtype=np.int32)))
        ranks.append(int(np.sum(evidence > evidence[0])))
        assert evidence[0] > evidence[-1], "better than no block"
    assert max(ranks) <= 1
    assert ranks.count(0) >= L - 2


def peeled(stack, pairs, certain, x, pred):
    at = start_peeling(pairs)
    while at.placed < stack.depth:
        at = peel(stack, at, certain, x, pred)
    return at


@pytest.mark.parametrize("known", ["all", "some", pytest.param("none", marks=pytest.mark.slow)])
def test_a_stack_is_peeled_with_the_pairs_that_are_known(known):
    stack, truth, x, pred = planted(1)
    certain = np.full(L, -1)
    sure = truth[{"all": slice(None), "some": slice(None, None, 2), "none": slice(0)}[known]]
    certain[sure[:, 0]] = sure[:, 1]
    wrong = np.stack([np.arange(L), np.roll(np.arange(L), 1)], axis=1)
    found = peeled(stack, wrong, certain, x, pred)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.placed == L
    assert (found.lift > 0).all()
    assert not found.knows_nothing


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_table_of_another_network_knows_nothing(seed):
    stack, truth, x, _ = planted(seed)
    _, _, _, other = planted(seed + 100)
    at = start_peeling(truth)
    for certain in (np.full(L, -1), truth[np.argsort(truth[:, 0]), 1]):
        assert peel(stack, at, certain, x, other).knows_nothing


def test_outputs_that_overflow_end_in_an_arrangement():
    stack, truth, x, pred = planted(0)
    found = peeled(stack, truth, np.full(L, -1), 1e20 * x, pred)
    assert sorted(found.arrangement[:, 0]) == sorted(found.arrangement[:, 1]) == list(range(L))


def test_a_table_of_one_row_knows_nothing():
    stack, truth, x, pred = planted(0)
    assert peel(stack, start_peeling(truth), np.full(L, -1), x[:1], pred[:1]).knows_nothing


def test_fewer_rows_are_looked_at_where_memory_is_scarce():
    stack, *_ = planted(0)
    assert peeling.rows_to_peel(stack) == peeling.ROWS
    assert peeling.rows_to_peel(stack, memory=16 * L * H * 50) == 50


# The rung


def ground_of(seed, depth=8, other=False):
    """The ground of a stack whose weights show no pairs, its truth, and a wrong start."""
    stack, truth, x, pred = planted(seed, rows=1500, depth=depth)
    if other:
        _, _, _, pred = planted(seed + 100, rows=1500, depth=depth)
    rng = np.random.default_rng(seed)
    start = reference.random_arrangement(rng, depth)
    pairing = Pairing("drawn", rng.normal(size=(depth, depth)), start[np.argsort(start[:, 0]), 1], True)
    return Ground.of(mesh.put(stack), Table(x, pred), pairing, seed), truth, start


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_rung_finds_pairs_and_order_that_no_weight_shows(seed):
    ground, truth, start = ground_of(seed)
    assert (ground.certain == -1).all()
    found = climb(ByPeeling(ground, ByFlips, pairs_open=True), ground.judged(start), ground.context)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.mse <= ground.exact


def test_the_rung_ends_where_the_table_knows_nothing_and_where_nothing_is_left_to_find():
    ground, _, start = ground_of(0, other=True)
    best = ground.judged(start)
    found = climb(ByPeeling(ground, ByFlips, pairs_open=True), best, ground.context)
    np.testing.assert_array_equal(found.arrangement, start)
    assert found.evaluations == 0
    ground, truth, _ = ground_of(0)
    rung = ByPeeling(ground, ByFlips, pairs_open=True)
    assert rung.ended(rung.start(ground.judged(truth)))


def test_pairs_that_are_clear_of_chance_are_certain():
    ground, truth, _ = ground_of(3)
    score = np.random.default_rng(0).normal(size=(8, 8)) / 100
    score[truth[:, 0], truth[:, 1]] += 1
    partner = truth[np.argsort(truth[:, 0]), 1]
    table = Table(*map(np.asarray, ground.few))
    np.testing.assert_array_equal(Ground.of(ground.stack, table, Pairing("drawn", score, partner, True), 0).certain, partner)


def test_what_weights_say_of_pairs_counts_by_how_far_the_chosen_ones_stand_out():
    rng = np.random.default_rng(0)
    partner = rng.permutation(30)
    score = rng.normal(size=(30, 30))
    right = np.zeros((30, 30))
    right[np.arange(30), partner] = 1
    found = log_odds(Pairing("drawn", score + 8 * right, partner, True))
    assert found[right == 1].mean() == pytest.approx((8 - (2 * np.log(30)) ** 0.5) * 8, rel=0.15)
    assert abs(found[right == 0].mean()) < 1
    chosen = scipy.optimize.linear_sum_assignment(score, maximize=True)[1]
    assert (log_odds(Pairing("drawn", score, chosen, True)) == 0).all(), "no signal"


def test_belief_decides_where_the_table_says_nothing():
    stack, truth, x, _ = planted(0)
    belief = np.zeros((L, L))
    belief[truth[:, 0], truth[:, 1]] = 1e4
    noise = np.random.default_rng(0).normal(size=(ROWS, 1)).astype(np.float32)
    rest = np.stack([truth[:, 0], np.roll(truth[:, 1], 1)], axis=1)
    np.testing.assert_array_equal(matched(stack, rest, np.full(L, -1), x, noise, belief), truth)
