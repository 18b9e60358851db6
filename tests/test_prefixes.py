import jax
import numpy as np
import pytest
from peelable import planted as planted_of

from dropjax.core.stack import trajectory
from dropjax.moves.first_order import flips_and_swaps, linearised
from dropjax.ordering.flip_regression import flippable, to_first_order
from dropjax.ordering.prefixes import likelihoods, prefix_equations, straighten_prefix
from dropjax.ordering.regressions import Outlook, regression, slopes, with_none

L = 9
RIDGE = np.float32(1e-3)


def planted(seed, outputs=1, rows=800):
    """A stack of nine blocks and one of zeros, its truth, and its table."""
    stack, truth, x, pred = planted_of(seed, outputs, rows, L)
    return with_none(stack), truth, x, pred


def behind(stack, truth, count, pred, rng):
    """The outlook on the blocks behind a prefix of that many, in any order, and on none."""
    left = np.concatenate([rng.permutation(truth[count:]), [[L, L]]]).astype(np.int32)
    return Outlook(left[:, 0], np.swapaxes(np.asarray(stack.w_out)[left[:, 1]], 1, 2), pred, RIDGE)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("rows", [800, 20], ids=["more rows", "more columns"])
def test_equations_are_those_of_flips_and_read_out_together(outputs, rows):
    stack, truth, x, pred = planted(1, outputs, rows)
    rng = np.random.default_rng(1)
    prefix, outlook, reach = rng.permutation(truth[:5]), behind(stack, truth, 5, pred, rng), 3
    found = prefix_equations(stack, prefix, x, outlook, reach)
    at = trajectory(stack, prefix, x)
    seen, of = regression(stack, outlook, at.states[-1])
    i, j = flippable(len(prefix), reach)
    lines = linearised(stack, prefix, at, slopes(stack, outlook, seen, of, at.states[-1]))
    changes = np.asarray(flips_and_swaps(stack, prefix, lines)[..., i, j], np.float64)
    changes -= changes.mean(axis=0)
    columns, target = (np.asarray(part, np.float64) for part in (seen.columns, seen.target))
    # The Schur complement of one regression of the target on the read-out's columns and on flips, which have no ridge.
    gram, towards, squares = 0, 0, 0
    inverse = np.linalg.inv(columns.T @ columns + rows * float(RIDGE) * np.eye(columns.shape[1]))
    for k in range(outputs):
        across = columns.T @ changes[:, k]
        gram = gram + changes[:, k].T @ changes[:, k] - across.T @ inverse @ across
        towards = towards + changes[:, k].T @ target[:, k] - across.T @ inverse @ columns.T @ target[:, k]
        squares += np.sum((target[:, k] - columns @ inverse @ columns.T @ target[:, k]) ** 2)
    scale = rows * outputs
    np.testing.assert_allclose(found.gram * scale, gram, atol=2e-3 * np.abs(gram).max())
    np.testing.assert_allclose(found.towards * scale, towards, atol=5e-3 * np.abs(towards).max())
    assert float(found.mse) * scale == pytest.approx(squares, rel=1e-2)


def test_the_first_order_gain_is_that_of_the_flips_that_an_order_makes():
    rng = np.random.default_rng(2)
    n, reach = 5, 3
    i, j = flippable(n, reach)
    root = rng.normal(size=(20, len(i)))
    normal = jax.tree.map(np.asarray, prefix_equations(*_small(rng), reach))._replace(
        gram=root.T @ root, towards=rng.normal(size=len(i))
    )
    orders = np.array([rng.permutation(n) for _ in range(10)] + [np.arange(n)])
    found = to_first_order(normal, orders, reach)
    for order, gain in zip(orders.tolist(), found, strict=True):
        flipped = np.array([order.index(a) > order.index(b) for a, b in zip(i, j, strict=True)], float)
        assert gain == pytest.approx(np.sum((root @ flipped) ** 2) - 2 * normal.towards @ flipped)
    assert found[-1] == 0


def _small(rng):
    stack, truth, x, pred = planted(2, rows=50)
    return stack, truth[:5], x, behind(stack, truth, 5, pred, rng)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_jumbled_prefix_is_straightened_whatever_the_order_behind_it(seed):
    stack, truth, x, pred = planted(seed)
    rng = np.random.default_rng(seed)
    prefix, outlook = truth[:6], behind(stack, truth, 6, pred, rng)
    jumbled = prefix[[1, 0, 2, 5, 3, 4]]
    found = straighten_prefix(stack, jumbled, x, outlook)
    np.testing.assert_array_equal(found, prefix)
    true, wrong = likelihoods(stack, np.stack([prefix, jumbled]), x, np.tile(outlook.left, (2, 1)), outlook)
    assert true > wrong + 10


def test_the_outputs_of_another_network_leave_a_prefix_as_it_is_or_order_it_by_chance_alone():
    stack, truth, x, _ = planted(0)
    other = np.random.default_rng(0).normal(size=(len(x), 1)).astype(np.float32)
    rng = np.random.default_rng(0)
    outlook = behind(stack, truth, 6, other, rng)
    found = straighten_prefix(stack, truth[:6], x, outlook)
    assert sorted(map(tuple, found)) == sorted(map(tuple, truth[:6]))
    before, after = likelihoods(stack, np.stack([truth[:6], found]), x, np.tile(outlook.left, (2, 1)), outlook)
    assert after - before < 10


def test_one_block_and_outputs_that_overflow_stay_as_they_are():
    stack, truth, x, pred = planted(0)
    outlook = behind(stack, truth, 6, pred, np.random.default_rng(0))
    np.testing.assert_array_equal(straighten_prefix(stack, truth[:1], x, outlook), truth[:1])
    np.testing.assert_array_equal(straighten_prefix(stack, truth[:6], 1e20 * x, outlook), truth[:6])
