import jax
import numpy as np
import pytest
import reference
from hypothesis import given, settings

from dropjax.core import stack as stacks


@pytest.mark.parametrize("activation", stacks.ACTIVATIONS)
def test_forward_agrees_with_the_float64_replay(activation):
    stack = reference.random_stack(np.random.default_rng(1), 4, 5, 7, 3, activation)
    x = np.random.default_rng(2).normal(size=(20, 5)).astype(np.float32)
    np.testing.assert_allclose(stacks.forward(stack, x), stacks.replay(stack, x), rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(reference.shapes, reference.seeds)
def test_trajectory_holds_every_state(shape, seed):
    rng = np.random.default_rng(seed)
    stack, arrangement = reference.random_stack(rng, *shape), reference.random_arrangement(rng, shape[0])
    x = rng.normal(size=(6, shape[1])).astype(np.float32)
    expected = np.stack(reference.states(stack, arrangement, x))
    found = jax.jit(stacks.trajectory)(stack, arrangement, x)
    np.testing.assert_allclose(found.states, expected, rtol=1e-3, atol=1e-4)
    for k, half in enumerate(arrangement[:, 0]):
        z = expected[k] @ np.asarray(stack.w_in)[half].T + np.asarray(stack.b_in)[half]
        np.testing.assert_allclose(found.preactivations[k], z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("shape", reference.SHAPES)
def test_adjoints_are_the_derivatives_that_autodiff_finds(shape, activation):
    rng = np.random.default_rng(3)
    depth = shape[0]
    stack = reference.random_stack(rng, *shape, activation=activation)
    arrangement = reference.random_arrangement(rng, depth)
    x = rng.normal(size=(6, shape[1])).astype(np.float32)
    through = jax.jit(stacks.trajectory)(stack, arrangement, x)
    adjoints = jax.jit(stacks.adjoints)(stack, arrangement, through)
    stack, arrangement = jax.device_put(stack), jax.device_put(arrangement)
    for k in range(depth + 1):
        onward = lambda row: stacks.read_out(stack, stacks.advance(stack, arrangement, k, depth, row[None]))[0]  # noqa: B023, E731
        np.testing.assert_allclose(adjoints[k], jax.vmap(jax.jacfwd(onward))(through.states[k]), rtol=1e-3, atol=1e-4)


def test_arranged_puts_the_halves_where_the_arrangement_says():
    rng = np.random.default_rng(4)
    stack, arrangement = reference.random_stack(rng, 5, 6, 4, 2), reference.random_arrangement(rng, 5)
    x = rng.normal(size=(6, 6)).astype(np.float32)
    expected = reference.outputs(stack, arrangement, x)
    np.testing.assert_allclose(stacks.forward(stack.arranged(arrangement), x), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(stacks.forward(stack, x), expected, rtol=1e-2)
