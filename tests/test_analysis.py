"""The analysis against definitions written out, one row at a time, and against planted truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from dropjax.core.stack import Stack, identity_arrangement
from dropjax.pairing.ratio import diagonal_dominance
from dropjax.reporting import analysis
from dropjax.search.problem import Problem

L, D, H = 4, 5, 7
permutations = st.integers(1, 9).flatmap(lambda n: st.permutations(list(range(n))))


@pytest.fixture(scope="module")
def stack():
    return reference.random_stack(np.random.default_rng(0), L, D, H, 1)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(30, D)).astype(np.float32)


def jacobian(stack, k, state):
    """J_r of block k at one state."""
    active = stack.w_in[k] @ state + stack.b_in[k] > 0
    return stack.w_out[k] @ np.diag(active.astype(float)) @ stack.w_in[k]


def test_blocks_follow_the_definitions(stack, x):
    blocks = jax.tree.map(np.asarray, analysis.measure_blocks(jax.tree.map(jnp.asarray, stack), x, few=len(x)))
    states = reference.states(stack, identity_arrangement(L), x)
    for k in range(L):
        at = states[k]
        jacobians = np.array([jacobian(stack, k, state) for state in at])
        through = np.eye(D) + jacobians
        squares = np.einsum("nki,nkj->nij", through, through)
        expected = {
            "trace": np.trace(stack.w_out[k] @ stack.w_in[k]),
            "jacobian_squared": np.mean(np.sum(jacobians**2, axis=(1, 2))),
            "jacobian_trace": np.mean(np.trace(jacobians, axis1=1, axis2=2)),
            "isometry": np.linalg.norm(squares.mean(axis=0) - np.eye(D)),
            "row_isometry": np.mean(np.linalg.norm(squares - np.eye(D), axis=(1, 2))),
            "delta_norm": np.mean(np.linalg.norm(reference.residual(stack, (k, k), x), axis=1)),
            "residual_norm": np.mean(np.linalg.norm(states[k + 1] - at, axis=1)),
            "state_norm": np.mean(np.linalg.norm(at, axis=1)),
            "activation": np.mean(at @ stack.w_in[k].T + stack.b_in[k] > 0, axis=0),
            "singular_values": np.linalg.svd(stack.w_out[k] @ stack.w_in[k])[1],
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(blocks, name)[k], value, rtol=2e-4, atol=1e-5, err_msg=name)


def test_an_isometry_meets_proposition_1(x):
    """A block that turns space by a reflection: with every unit's pair half active, the three numbers are equal."""
    direction = np.full(D, D**-0.5)
    # ReLU(u·x) − ReLU(−u·x) = u·x, and each of the two is active on one side alone.
    w_in = np.stack([direction, -direction])[None].astype(np.float32)
    w_out = (-2 * np.stack([direction, -direction], axis=1))[None].astype(np.float32)
    zero = np.zeros((1, 2), np.float32), np.zeros((1, D), np.float32)
    w_in, b_in, w_out, b_out = map(jnp.asarray, (w_in, zero[0], w_out, zero[1]))
    reflection = Stack(w_in, b_in, w_out, b_out, jnp.ones((1, D)), jnp.zeros(1))
    both = np.concatenate([x, -x])
    blocks = analysis.measure_blocks(reflection, both)
    np.testing.assert_allclose(blocks.activation[0], 0.5)
    assert float(blocks.isometry[0]) < 1e-5
    for value in (blocks.trace[0], 2 * blocks.jacobian_trace[0], -blocks.jacobian_squared[0]):
        assert float(value) == pytest.approx(-4, abs=1e-5)


def test_effective_rank():
    assert analysis.effective_rank(np.ones((2, 6))) == pytest.approx(6)
    assert analysis.effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)


def test_right_pairs_give_d_again(stack):
    product = analysis.products(stack)
    score, trace = diagonal_dominance(stack.w_in, stack.w_out)
    split = analysis.right_pairs(product)
    np.testing.assert_allclose(split.predicted, score.diagonal(), rtol=1e-4)
    np.testing.assert_allclose(split.epsilon, np.abs(trace.diagonal()) / D, rtol=1e-4)
    norms = np.linalg.norm(product, axis=(1, 2))
    np.testing.assert_allclose(split.epsilon**2 * D + split.rest_norm**2, norms**2, rtol=1e-4)  # Eq. 17
    assert analysis.right_pairs(-2 * np.eye(4)[None]).predicted == pytest.approx(2)  # the bound √d


def test_random_wrong_pairs_are_as_predicted():
    rng = np.random.default_rng(0)
    n, d, h = 24, 12, 20
    w_in, w_out = 0.7 * rng.normal(size=(n, h, d)), 0.2 * rng.normal(size=(n, d, h))
    score, trace = diagonal_dominance(w_in.astype(np.float32), w_out.astype(np.float32))
    wrong = analysis.wrong_pairs(w_in, w_out, np.eye(n, dtype=bool), score, trace)
    assert len(wrong.standardised) == n * (n - 1)
    assert wrong.standardised.std() == pytest.approx(1, abs=0.12)
    assert wrong.trace_deviation == pytest.approx(wrong.predicted_deviation, rel=0.12)
    assert wrong.ratio == pytest.approx(d**-0.5, rel=0.12)


def test_the_variance_of_a_wrong_products_entries_is_eq_19():
    rng = np.random.default_rng(1)
    w_in, w_out = 0.5 * rng.normal(size=(2, 400, 30)), 2.0 * rng.normal(size=(2, 30, 400))
    w_out[1] *= 3
    predicted = analysis.entry_variance(w_in, w_out)
    for i in range(2):
        for j in range(2):
            assert np.var(w_out[j] @ w_in[i]) == pytest.approx(predicted[i, j], rel=0.15)
    np.testing.assert_allclose(predicted, 400 * 0.25 * np.array([[4, 36]] * 2), rtol=0.05)


def test_commutators_follow_the_definition(stack, x):
    found = analysis.commutators(jax.tree.map(jnp.asarray, stack), x)
    states = reference.states(stack, identity_arrangement(L), x)
    norm = lambda rows: np.linalg.norm(rows, axis=1)  # noqa: E731
    for a in range(L):
        for b in range(a + 1, L):
            r = lambda k, x: reference.residual(stack, (k, k), x)  # noqa: E731
            at = states[a]
            first, second = r(a, at), r(b, at)
            ab = first + r(b, at + first)
            ba = second + r(a, at + second)
            assert found.size[a, b] == pytest.approx(np.mean(norm(ab - ba)), rel=1e-3)
            assert found.product[a, b] == pytest.approx(np.mean(norm(first) * norm(second)), rel=1e-3)
            assert found.change[a, b] == pytest.approx(np.mean(norm(ab)), rel=1e-3)


def test_small_residuals_commute_to_first_order(stack, x):
    """Halved residuals: a quarter of the commutator, of which the first-order term is all but everything."""
    shrunk = lambda s: jax.tree.map(  # noqa: E731
        jnp.asarray, Stack(stack.w_in, stack.b_in, s * stack.w_out, s * stack.b_out, stack.w_last, stack.b_last)
    )
    small, smaller = analysis.commutators(shrunk(0.02), x), analysis.commutators(shrunk(0.01), x)
    assert float(smaller.size[0, 2] / small.size[0, 2]) == pytest.approx(0.25, abs=0.05)
    others = ~np.eye(L, dtype=bool)
    np.testing.assert_allclose(np.asarray(smaller.first_order / smaller.size)[others], 1, atol=0.03)


def test_by_distance():
    values = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(analysis.by_distance(values)[:, 1], [3, 2])


def bubble(items):
    """Bubble sort written out: the order after each round, and its exchanges as (round, position)."""
    rounds, kept = [list(items)], []
    while True:
        now = list(rounds[-1])
        for i in range(len(now) - 1):
            if now[i] > now[i + 1]:
                now[i], now[i + 1] = now[i + 1], now[i]
                kept.append((len(rounds), i))
        if now == rounds[-1]:
            return rounds, kept
        rounds.append(now)


@given(permutations)
def test_rounds_and_inversions_are_what_bubble_sort_takes(items):
    rounds, kept = bubble(items)
    found = analysis.disorder(np.array(items))
    assert (found.rounds, found.inversions) == (len(rounds) - 1, len(kept))
    assert found.largest_displacement == max(abs(k - item) for k, item in enumerate(items))


@given(permutations)
def test_sweeps_are_read_off_their_ends(items):
    rounds, kept = bubble(items)
    found = analysis.decisions([np.array(order) for order in rounds])
    assert [(e.round, e.position) for e in found.kept] == kept
    assert all(e.sorts for e in found.kept)
    assert not found.missed


def test_wrong_and_missed_exchanges_are_told():
    # one sweep: 0 and 1 exchanged (wrong), then 3 and 2 left as they were (missed)
    found = analysis.decisions([np.array([0, 1, 3, 2]), np.array([1, 0, 3, 2])])
    assert [(e.left, e.right, e.sorts) for e in found.kept] == [(0, 1, False)]
    assert [(e.position, e.left, e.right) for e in found.missed] == [(2, 3, 2)]


@given(permutations)
@settings(max_examples=20)
def test_rank_correlations(items):
    found = analysis.disorder(np.array(items))
    back = analysis.disorder(np.array(items)[::-1])
    if len(items) > 1:
        assert found.spearman == pytest.approx(-back.spearman)
        assert found.kendall == pytest.approx(-back.kendall)
    assert analysis.disorder(np.arange(5)).spearman == pytest.approx(1)
    assert analysis.disorder(np.arange(1)).spearman == 1
    assert np.isnan(analysis.rank_correlation(np.arange(3), np.ones(3)))


def test_places():
    solved = np.array([[2, 0], [0, 1], [1, 2]])
    np.testing.assert_array_equal(analysis.places_in(solved[[2, 0, 1]], solved), [2, 0, 1])


def test_a_sweep_back_decides_as_one_by_one(stack, x):
    rng = np.random.default_rng(3)
    pred = reference.outputs(stack, identity_arrangement(L), x).astype(np.float32)
    start = np.asarray(identity_arrangement(L))[rng.permutation(L)]
    order, kept, mse = start, 0, reference.mse(stack, start, x, pred)
    for i in reversed(range(L - 1)):
        candidate = reference.after(order, (0, i, i + 1))
        score = reference.mse(stack, candidate, x, pred)
        if score < mse:
            order, kept, mse = candidate, kept + 1, score
    found, swaps, error = analysis.sweep_back(jax.tree.map(jnp.asarray, stack), jnp.asarray(start), x, pred)
    np.testing.assert_array_equal(found, order)
    assert int(swaps) == kept > 0
    assert float(error) == pytest.approx(mse, abs=1e-6)


def test_repairs_agree_with_their_parts(stack, x):
    stack = jax.tree.map(jnp.asarray, stack)
    pred = reference.outputs(stack, identity_arrangement(L), x).astype(np.float32)
    problem = Problem.of(stack, x, pred)
    start = np.asarray(identity_arrangement(L))[[1, 0, 2, 3]]
    route = analysis.repair_route(problem, problem.first(20), start)
    assert route.table[0] == (0, 0, pytest.approx(reference.mse(stack, start, x, pred), rel=1e-3), 0)
    assert route.table[1][1:] == (1, pytest.approx(0, abs=1e-9), 1)
    np.testing.assert_array_equal(route.arrangements[-1], identity_arrangement(L))
    assert len(analysis.repair_route(problem, problem, start, limit=0).table) == 1
    both = analysis.repair_both_ways(problem, start)
    assert both.swaps == [1]
    np.testing.assert_array_equal(both.arrangement, identity_arrangement(L))


def test_table():
    rng = np.random.default_rng(0)
    base = rng.choice([-1.0, 1.0], size=4000)
    x = np.stack([base, -base, rng.normal(size=4000), np.full(4000, 3.0)], axis=1)
    table = analysis.describe_table(x, 2 * x[:, 2:3] + 1)
    assert table.near_one[0] == 1 and table.near_one[3] == 0
    assert table.kurtosis[:3] == pytest.approx([-2, -2, 0], abs=0.2)
    assert table.correlation[0, 1] == pytest.approx(-1)
    assert table.linear[0] == pytest.approx(1)
    assert list(table.distinct[[0, 3]]) == [2, 1]
    assert np.abs(table.next_row).max() < 0.1
    assert table.effective_rank == pytest.approx(np.exp(-(2 / 3) * np.log(2 / 3) - (1 / 3) * np.log(1 / 3)), rel=0.02)


def test_signals_of_a_planted_stack():
    rng = np.random.default_rng(0)
    w_in = rng.normal(size=(6, 9, 8)) / 3
    size = np.arange(1, 7)[:, None, None] / 10
    arrays = (w_in, np.zeros((6, 9)), -size * w_in.swapaxes(1, 2), np.zeros((6, 8)), np.ones((1, 8)), np.zeros(1))
    w_in, b_in, w_out, b_out, w_last, b_last = (jnp.asarray(a, jnp.float32) for a in arrays)
    stack = Stack(w_in, b_in, w_out, b_out, w_last, b_last)
    found = analysis.signals(stack, jnp.asarray(rng.normal(size=(40, 8)), jnp.float32))
    assert found["negative_traces"] == found["paired"] == 1
    assert found["own_min"] > found["other_max"]
    assert found["w_out_norm"] > 0.9
