"""First-order scores against sums of exact flips, finite differences and the definition."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from dropjax.network import first_order, moves, protocol

IN_TURN = (networks.attention, networks.mlp)


def smaller(step, size, p, x):
    return x + size * (step(p, x) - x)


def network_of(name, rng, size=0.02):
    """A network of residuals so small that first order errs by a few percent, an arrangement, and its rows."""
    block, parts, x = networks.transformer(rng) if name != "P=1" else networks.plain(rng)
    in_turn = tuple(partial(smaller, step, size) for step in IN_TURN)
    block = in_turn if name == "in turn" else partial(smaller, block, size)
    network = protocol.make(block, parts)
    at = np.stack([rng.permutation(network.depth) for _ in parts], axis=1).astype(np.int32)
    return network, at, x


def run(network, arrangement, x):
    for row in arrangement:
        x = network.run(network.pick(jnp.asarray(row)), x)
    return x


def all_moves(network):
    masks = moves.kind_sets(network.kinds)[0] if first_order.is_complete(network) else [2**network.kinds - 1]
    return moves.every_move(network.depth, masks)


@pytest.mark.parametrize("name", ["P=1", pytest.param("jointly", marks=pytest.mark.slow), "in turn"])
def test_moves_change_the_outputs_as_sums_of_flips_say(name):
    rng = np.random.default_rng(0)
    network, at, x = network_of(name, rng)
    outputs = int(np.prod(x.shape[1:]))
    target = rng.normal(size=x.shape).astype(np.float32)
    linear = first_order.linearise(network, at, x, target, jax.random.key(0), outputs)
    listed = all_moves(network)
    pairs = first_order.turned(network, listed)
    # As many combinations as outputs: each is an output, times √(1/o) for a mean of o squares.
    change = np.einsum("kab,abnc->knc", pairs, np.asarray(linear.flips))[:, :, 1:] * np.sqrt(outputs)
    with jax.enable_x64(True):
        network64, x64 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (network, x))
        before = np.asarray(run(network64, at, x64))
        exact = [np.asarray(run(network64, after, x64)) - before for after in moves.moved(at, listed)]
    exact = np.stack(exact).reshape(len(listed), len(x), -1)
    assert np.linalg.norm(change - exact) < 0.1 * np.linalg.norm(exact)


def test_parts_in_one_anothers_stead_change_the_outputs_as_replaced_says():
    rng = np.random.default_rng(6)
    network, at, x = network_of("jointly", rng)
    count = int(np.prod(x.shape[1:]))
    target = rng.normal(size=x.shape).astype(np.float32)
    linear = first_order.linearise(network, at, x, target, jax.random.key(0), count)
    ours = np.asarray(linear.replaced)[..., 1:] * np.sqrt(count)
    with jax.enable_x64(True):
        network64, x64 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (network, x))
        before = np.asarray(run(network64, at, x64))
        for into, kind, of in np.ndindex(*ours.shape[:3]):
            other = at.copy()
            other[into, kind] = at[of, kind]  # one part twice, which no move leaves, and another one not at all
            exact = (np.asarray(run(network64, other, x64)) - before).reshape(len(x), -1)
            error = np.linalg.norm(ours[into, kind, of] - exact)
            assert error <= 0.1 * np.linalg.norm(exact), (into, kind, of)
            assert of != into or error == 0


def test_moves_of_single_parts_of_a_joint_block_are_sums_of_what_is_replaced():
    rng = np.random.default_rng(7)
    network, at, x = network_of("jointly", rng)
    linear = first_order.linearise(network, at, x, x, jax.random.key(0), 3)
    listed = moves.every_move(network.depth, [1, 2])
    replaced, changes = np.asarray(linear.replaced), first_order.changes(network, linear, listed)
    for move, ours in zip(listed, changes, strict=True):
        (after,) = moves.moved(at, move[None])
        came = [[list(at[:, p]).index(part) for p, part in enumerate(row)] for row in after]
        theirs = sum(replaced[t, p, of] for t, row in enumerate(came) for p, of in enumerate(row) if of != t)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["P=1", "jointly", "in turn"])
def test_predictions_are_the_exact_changes_of_the_loss(name):
    rng = np.random.default_rng(1)
    network, at, x = network_of(name, rng)
    listed = moves.every_move(network.depth, moves.kind_sets(network.kinds)[0])
    target = np.asarray(run(network, moves.moved(at, listed[:1])[0], x))
    linear = first_order.linearise(network, at, x, target, jax.random.key(0), int(np.prod(x.shape[1:])))
    predicted = first_order.predicted(network, linear, listed)
    loss = lambda a: float(np.mean((np.asarray(run(network, a, x), np.float64) - target) ** 2))  # noqa: E731
    exact = np.array([loss(after) for after in moves.moved(at, listed)]) - loss(at)
    assert np.corrcoef(predicted, exact)[0, 1] > 0.99
    # The target was made by the first move. What `replaced` leaves out of an exchange of neighbours is as much as it says.
    assert 0 in np.argsort(predicted)[: 3 if name == "jointly" else 1]


def test_few_random_combinations_estimate_what_all_give():
    rng = np.random.default_rng(2)
    network, at, x = network_of("in turn", rng)
    target = rng.normal(size=x.shape).astype(np.float32)
    listed = all_moves(network)
    few, every = (
        first_order.predicted(network, first_order.linearise(network, at, x, target, jax.random.key(0), count), listed)
        for count in (8, int(np.prod(x.shape[1:])))
    )
    assert np.corrcoef(few, every)[0, 1] > 0.9


def test_adjoints_go_through_normalisation_and_softmax():
    """The flip of two steps against a central difference of the swap's effect, by the states' own derivatives."""
    rng = np.random.default_rng(3)
    block, parts, x = networks.transformer(rng, L=2)
    weights = rng.normal(size=x.shape).astype(np.float32)
    row = tuple(jax.tree.map(lambda a: a[0], part) for part in parts)
    towards = rng.normal(size=x.shape).astype(np.float32)
    with jax.enable_x64(True):
        row, x, weights, towards = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (row, x, weights, towards))
        _, back = jax.vjp(lambda x: block(row, x), x)
        along = float(jnp.vdot(back(weights)[0], towards))
        ends = [float(jnp.vdot(weights, block(row, x + sign * 1e-5 * towards))) for sign in (1, -1)]
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_blocks_mapped_over_rows_are_linearised_as_operation_by_operation():
    """One version of XLA sums large arrays wrongly where such blocks are normalised; COMPILED is what spares them that."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(8, 32, 64)).astype(np.float32)
    w = (rng.normal(size=(3, 64, 64)) / 8).astype(np.float32)
    norm = eqx.nn.LayerNorm(64, use_weight=False, use_bias=False)
    each = lambda w, token: token + jnp.tanh(w @ norm(token))  # noqa: E731
    network = protocol.make(lambda p, x: jax.vmap(jax.vmap(partial(each, p[0])))(x), (w,))
    at = np.arange(3, dtype=np.int32)[:, None]
    compiled = first_order.linearise(network, at, x, 0 * x, jax.random.key(0), 16)
    with jax.disable_jit():
        plain = first_order.linearise(network, at, x, 0 * x, jax.random.key(0), 16)
    np.testing.assert_allclose(compiled.flips, plain.flips, atol=1e-4)


def test_whole_numbers_in_a_state_pass_through():
    rng = np.random.default_rng(4)
    _, _, x = networks.thirds(rng)
    w = rng.normal(size=(3, 5, 5)).astype(np.float32)
    block = lambda p, s: {"a": s["a"] + 0.1 * jnp.tanh(s["a"] @ p[0]) + s["rest"][1][:, None], "rest": s["rest"]}  # noqa: E731
    network = protocol.make(block, (w,), read_out=lambda s: s["a"])
    at = np.arange(3, dtype=np.int32)[:, None]
    linear = first_order.linearise(network, at, x, x["a"], jax.random.key(0), 5)
    assert np.isfinite(linear.flips).all()
    assert linear.flips.shape == (3, 3, 6, 6)


def test_regressions_on_flips_turn_many_wrong_pairs_round_at_once():
    rng = np.random.default_rng(5)
    block, parts, x = networks.plain(rng, L=8, d=8, rows=60)
    network = protocol.make(lambda p, x: x + 0.1 * (block(p, x) - x), parts)
    at = np.arange(8, dtype=np.int32)[:, None]
    target = np.asarray(run(network, at, x))
    wrong = at[[1, 0, 3, 2, 5, 4, 7, 6]]
    linear = first_order.linearise(network, wrong, x, target, jax.random.key(0), 8)
    assert any(np.array_equal(found, at) for found in first_order.proposals(network, wrong, linear))
