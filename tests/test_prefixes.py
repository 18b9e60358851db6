import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dropjax.core.stack import trajectory
from dropjax.moves.first_order import flips_and_swaps, linearised
from dropjax.ordering.flip_regression import flippable, to_first_order
from dropjax.ordering.prefixes import likelihoods, prefix_equations, slopes, straighten_prefix
from dropjax.ordering.regressions import design, gram_of, residual_features, ridge_regression

L, D, H = 9, 5, 9
RIDGE = np.float32(1e-3)
BASIS = np.eye(D, dtype=np.float32)


def planted(seed, outputs=1, rows=800, activation="relu"):
    """A stack, its truth, and its table."""
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, L, D, H, outputs, size=0.5, activation=activation)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    truth = reference.random_arrangement(rng, L)
    return stack, truth, x, reference.outputs(stack, truth, x).astype(np.float32)


def behind(truth, count, rng):
    """The blocks behind a prefix of that many, in any order, and a row for none."""
    return np.concatenate([rng.permutation(truth[count:]), [[-1, -1]]]).astype(np.int32)


def regression(stack, left, end, pred):
    """The design at some states, and the regression."""
    seen = design(stack, left, end, pred, residual_features(stack, left, end, BASIS))
    return seen, ridge_regression(seen, gram_of(seen.columns), np.float32(len(end) * RIDGE))


def test_slopes_are_the_regressions_gradient():
    stack, truth, x, pred = planted(0, outputs=2, activation="tanh")
    left = behind(truth, 4, np.random.default_rng(0))
    seen, of = regression(stack, left, x, pred)
    by_state, by_feature = map(float, seen.scales)

    def outputs(x):
        features = residual_features(stack, left, x, BASIS).reshape(len(x), -1)
        both = jnp.concatenate([by_state * x, by_feature * features], axis=1)
        return x @ stack.w_last.T + jnp.matmul(both, of.coefficients, precision="highest")

    found = np.asarray(slopes(stack, left, BASIS, seen, of, x))
    step = 1e-2
    for k in range(D):
        moved = np.eye(D, dtype=np.float32)[k] * step
        expected = (outputs(x + moved) - outputs(x - moved)) / (2 * step)
        np.testing.assert_allclose(found[..., k], expected, atol=2e-3 * np.abs(found).max())


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("rows", [800, 20], ids=["more rows", "more columns"])
def test_equations_are_those_of_flips_and_read_out_together(outputs, rows):
    stack, truth, x, pred = planted(1, outputs, rows)
    rng = np.random.default_rng(1)
    prefix, left, reach = rng.permutation(truth[:5]), behind(truth, 5, rng), 3
    found = prefix_equations(stack, prefix, left, x, pred, BASIS, RIDGE, reach)
    at = trajectory(stack, prefix, x)
    seen, of = regression(stack, left, at.states[-1], pred)
    i, j = flippable(len(prefix), reach)
    lines = linearised(stack, prefix, at, slopes(stack, left, BASIS, seen, of, at.states[-1]))
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
    return stack, truth[:5], behind(truth, 5, rng), x, pred, BASIS, RIDGE


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_jumbled_prefix_is_straightened_whatever_the_order_behind_it(seed):
    stack, truth, x, pred = planted(seed)
    rng = np.random.default_rng(seed)
    prefix, left = truth[:6], behind(truth, 6, rng)
    jumbled = prefix[[1, 0, 2, 5, 3, 4]]
    found = straighten_prefix(stack, jumbled, left, x, pred, BASIS, float(RIDGE))
    np.testing.assert_array_equal(found, prefix)
    true, wrong = likelihoods(stack, np.stack([prefix, jumbled]), left, x, pred, BASIS, RIDGE)
    assert true > wrong + 10


def test_the_outputs_of_another_network_leave_a_prefix_as_it_is_or_order_it_by_chance_alone():
    stack, truth, x, _ = planted(0)
    other = np.random.default_rng(0).normal(size=(len(x), 1)).astype(np.float32)
    rng = np.random.default_rng(0)
    left = behind(truth, 6, rng)
    found = straighten_prefix(stack, truth[:6], left, x, other, BASIS, float(RIDGE))
    assert sorted(map(tuple, found)) == sorted(map(tuple, truth[:6]))
    before, after = likelihoods(stack, np.stack([truth[:6], found]), left, x, other, BASIS, RIDGE)
    assert after - before < 10


def test_one_block_and_outputs_that_overflow_stay_as_they_are():
    stack, truth, x, pred = planted(0)
    left = behind(truth, 6, np.random.default_rng(0))
    np.testing.assert_array_equal(straighten_prefix(stack, truth[:1], left, x, pred, BASIS, float(RIDGE)), truth[:1])
    np.testing.assert_array_equal(straighten_prefix(stack, truth[:6], left, 1e20 * x, pred, BASIS, float(RIDGE)), truth[:6])
