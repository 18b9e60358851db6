"""Exact scores of arrangements, with shared prefixes, against running each through the network."""

import jax
import networks
import numpy as np
import pytest
import reference

from dropjax.moves.exact import score_arrangements
from dropjax.network import protocol
from dropjax.network.exact import plan, run_plan
from dropjax.network.mlp import mlp_network
from dropjax.network.scorer import Scorer


def drawn(make, seed=0, count=20):
    """A network, and arrangements of its parts, some of which begin alike and two of which are the same."""
    rng = np.random.default_rng(seed)
    block, parts, x = make(rng)
    L, P = len(jax.tree.leaves(parts)[0]), len(parts)
    arrangements = np.stack([[rng.permutation(L) for _ in range(P)] for _ in range(count)]).swapaxes(1, 2).astype(np.int32)
    arrangements[1] = arrangements[0]
    arrangements[2, :2], arrangements[3] = arrangements[0, :2], arrangements[0, ::-1]
    target = jax.tree.map(
        lambda a: rng.normal(size=a.shape).astype(np.float32), networks.outputs(block, parts, arrangements[0], x)
    )
    return block, parts, x, target, arrangements


def mean_squares(outputs, target):
    pairs = list(zip(jax.tree.leaves(outputs), jax.tree.leaves(target), strict=True))
    sums = sum(((a.astype(np.float64) - b) ** 2).reshape(len(a), -1).sum(1) for a, b in pairs)
    return sums / sum(a[0].size for a, _ in pairs)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_losses_are_those_of_whole_runs(name, together):
    block, parts, x, target, arrangements = drawn(networks.NETWORKS[name])
    network = protocol.make(block, parts)
    scorer = Scorer.of(network, x, target, chunk=2, together=together)
    expected = np.stack([mean_squares(networks.outputs(block, parts, a, x), target) for a in arrangements])
    np.testing.assert_allclose(scorer.row_losses(arrangements), expected, rtol=1e-4)
    np.testing.assert_allclose(scorer.losses(arrangements, 3), expected[:, :3].mean(axis=1), rtol=1e-4)
    ours, theirs = scorer.outputs_of(arrangements[4]), networks.outputs(block, parts, arrangements[4], x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_a_small_memory_changes_nothing():
    block, parts, x, target, arrangements = drawn(networks.transformer)
    whole = Scorer.of(protocol.make(block, parts), x, target, chunk=4)
    tight = Scorer.of(protocol.make(block, parts), x, target, chunk=1, memory=8000)
    assert tight.capacity < len(arrangements) < whole.capacity
    np.testing.assert_allclose(tight.losses(arrangements), whole.losses(arrangements), rtol=1e-5)


def test_functions_for_each_kind_are_the_block_they_make_in_turn():
    block, parts, x, target, arrangements = drawn(networks.transformer)
    jointly, in_turn = (protocol.make(b, parts) for b in (block, (networks.attention, networks.mlp)))
    losses = [Scorer.of(network, x, target, chunk=4).losses(arrangements) for network in (jointly, in_turn)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_plan_runs_each_state_once():
    arrangements = np.array([[0, 1, 2, 3], [0, 1, 3, 2], [0, 2, 1, 3], [0, 1, 2, 3]], np.int32)[:, :, None]
    made, blocks = plan(arrangements, capacity=4)
    states = {tuple(a[: k + 1, 0]) for a in arrangements for k in range(4)}
    assert blocks == len(states) == 9  # and not 16
    assert made.first[made.groups] == 9
    assert made.last[0] == made.last[3]


def test_the_losses_of_no_numbers_are_infinite():
    block, parts, x, target, arrangements = drawn(networks.plain)
    broken = (parts[0].copy(),)
    broken[0][0] = np.nan
    network = protocol.make(block, broken)
    found = Scorer.of(network, x, target, chunk=7).losses(arrangements)
    np.testing.assert_array_equal(np.isinf(found), (arrangements == 0).any(axis=(1, 2)))


@pytest.mark.parametrize("shape", [(5, 6, 4, 2), (3, 4, 7, 1)])
def test_a_stack_handed_over_scores_as_its_own_kernels_do(shape):
    rng = np.random.default_rng(0)
    stack = reference.random_stack(rng, *shape)
    x, pred = rng.normal(size=(11, shape[1])).astype(np.float32), rng.normal(size=(11, shape[3])).astype(np.float32)
    arrangements = np.stack([reference.random_arrangement(rng, shape[0]) for _ in range(10)])
    ours = Scorer.of(mlp_network(stack), x, pred, chunk=4).losses(arrangements)
    np.testing.assert_allclose(ours, score_arrangements(stack, arrangements, x, pred), rtol=1e-4)
    # Another stack of the same shape needs no new program.
    before = run_plan._cache_size()  # pyright: ignore[reportAttributeAccessIssue]  # JAX's own, and nothing public
    other = reference.random_stack(rng, *shape)
    Scorer.of(mlp_network(other), x, pred, chunk=4).losses(arrangements)
    assert run_plan._cache_size() == before  # pyright: ignore[reportAttributeAccessIssue]
