"""The GPU's kernel for candidates, interpreted: what it computes, what it is used for, and that it can be compiled."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from dropjax.core.stack import ACTIVATIONS, Stack, trajectory
from dropjax.moves import fused
from dropjax.moves.arrangements import SWAP, moved, pairs_of_positions
from dropjax.moves.exact import score_moves, squared_error


def random_stack(L: int, d: int, h: int, o: int = 1, activation: str = "relu", seed: int = 0) -> Stack:
    rng = np.random.default_rng(seed)
    shapes = (L, h, d), (L, h), (L, d, h), (L, d), (o, d), (o,)
    return Stack(*(jnp.asarray(rng.normal(size=s) / np.sqrt(s[-1]), jnp.float32) for s in shapes), activation=activation)


def candidates(stack: Stack, rows: int):
    """All swaps of a random arrangement: arrangements, starts, states, pred, weight."""
    rng = np.random.default_rng(1)
    arrangement = np.stack([rng.permutation(stack.depth) for _ in range(2)], axis=1).astype(np.int32)
    x, pred = (rng.normal(size=(rows, n)).astype(np.float32) for n in (stack.w_in.shape[2], stack.w_last.shape[0]))
    swaps = pairs_of_positions(stack.depth, SWAP)
    arrangements = jax.vmap(moved, (None, 0))(arrangement, swaps)
    states = trajectory(stack, arrangement, x).states
    return arrangements, swaps[:, 1], states, pred, rng.random(rows).astype(np.float32)


@pytest.mark.parametrize(
    ("L", "d", "h", "o", "rows", "activation"),
    [
        (5, 13, 37, 2, 70, "relu"),
        pytest.param(4, 48, 96, 1, 64, "relu", marks=pytest.mark.slow),
        pytest.param(3, 80, 20, 3, 33, "silu", marks=pytest.mark.slow),
        (3, 16, 16, 1, 5, "tanh"),
    ],
)
def test_each_candidate_has_the_error_that_a_plain_pass_gives(L, d, h, o, rows, activation):
    stack = random_stack(L, d, h, o, activation)
    arrangements, starts, states, pred, weight = candidates(stack, rows)
    errors = fused.squared_errors(stack, arrangements, starts, states, pred, weight, interpret=True)
    x = states[0]
    plain = [squared_error(stack, arrangement, 0, x, pred, weight) for arrangement in arrangements]
    np.testing.assert_allclose(errors, plain, rtol=1e-5)


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"gelu"}))
def test_it_can_be_lowered_for_a_gpu(activation):
    stack = random_stack(3, 48, 96, activation=activation)
    run = jax.jit(partial(fused.squared_errors, stack))
    calls = map(export.DisabledSafetyCheck.custom_call, ("__gpu$xla.gpu.triton", "triton_kernel_call_ffi"))
    lowered = export.export(run, platforms=("cuda",), disabled_checks=tuple(calls))(*candidates(stack, 100))
    assert "triton" in lowered.mlir_module()


def test_tiles_make_up_the_width():
    for width in range(16, 400, 16):
        found = fused.tiles(width)
        assert [start for start, _ in found] == list(np.cumsum([0, *(size for _, size in found[:-1])]))
        assert sum(size for _, size in found) == width
        assert all(size & (size - 1) == 0 for _, size in found)


def test_it_is_for_nvidia_gpus_and_stacks_that_fit(monkeypatch: pytest.MonkeyPatch):
    stack = random_stack(2, 48, 96)
    assert not fused.usable(stack)
    gpu = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert fused.usable(stack)
    assert fused.usable(random_stack(2, 64, 128))
    assert not fused.usable(random_stack(2, 64, 144))
    assert not fused.usable(random_stack(2, 48, 96, activation="gelu"))
    gpu.compute_capability = "7.5"
    assert not fused.usable(stack)
    gpu.device_kind, gpu.compute_capability = "AMD Instinct MI300X", "gfx942"
    assert not fused.usable(stack)


def test_moves_are_scored_by_it_where_it_is_usable(monkeypatch: pytest.MonkeyPatch):
    stack, rng = random_stack(6, 20, 30), np.random.default_rng(2)
    x, pred = (jnp.asarray(rng.normal(size=(50, n)), jnp.float32) for n in (20, 1))
    arrangement = np.tile(np.arange(6, dtype=np.int32)[:, None], (1, 2))
    swaps = pairs_of_positions(6, SWAP)
    plain = score_moves(stack, arrangement, swaps, x, pred)
    asked = []

    def squared_errors(*args):
        asked.append(len(args[1]))
        return fused_errors(*args, interpret=True)

    fused_errors = fused.squared_errors
    monkeypatch.setattr(fused, "usable", lambda _: True)
    monkeypatch.setattr(fused, "squared_errors", squared_errors)
    np.testing.assert_allclose(score_moves(stack, arrangement, swaps, x, pred, together=5), plain, rtol=1e-5)
    assert asked == [5]
    assert score_moves(stack, arrangement, swaps[:3], x, pred) == pytest.approx(plain[:3])
    assert asked == [5]
