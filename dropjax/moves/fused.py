"""Candidate arrangements on an NVIDIA GPU, each run through its whole stack by one kernel.

XLA runs one block of all candidates at a time and writes what comes out to memory: with blocks as narrow as these, a GPU
then mostly waits for memory. Here some rows of one candidate stay on the chip from their first block to their error.

Every float32 product is made of three TF32 products, which tensor cores run. That is as exact as float32 but for the last
digits (relative errors of the MSE some 1e-6); whatever decides that an order is exact does not come this way.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.stack import ACTIVATIONS, Stack
from dropjax.runtime import mesh

ON_CHIP = 1 << 16
"""Largest block weights, in bytes, that fit beside the block's rows in the shared memory of any such GPU."""
LEAST = 16
"""Smallest size of a tensor core's product in each dimension: widths are filled up to a multiple of it."""
ACROSS = 64
"""Largest number of units in a product."""


def usable(stack: Stack) -> bool:
    """Whether the kernel can run this stack's candidates; it cannot run gelu, because kernels have no erfc."""
    if jax.default_backend() != "gpu" or mesh.is_set():
        return False
    gpu = jax.devices()[0]
    if not gpu.device_kind.startswith("NVIDIA") or float(gpu.compute_capability) < 8:
        return False
    fits = 2 * stack.w_in[0].size * stack.w_in.itemsize <= ON_CHIP
    return fits and stack.activation != "gelu" and stack.precision == "highest"


def tiles(width: int) -> list[tuple[int, int]]:
    """(start, size) of the pieces, in powers of two as kernels need them, of a width that is a multiple of `LEAST`."""
    found, start, size = [], 0, ACROSS
    while start < width:
        if size <= width - start:
            found.append((start, size))
            start += size
        else:
            size //= 2
    return found


def squared_errors(
    stack: Stack,
    arrangements: Int[Array, "C L 2"],
    starts: Int[Array, " C"],
    states: Float[Array, "L+1 N d"],
    pred: Float[Array, "N o"],
    weight: Float[Array, " N"],
    interpret: bool = False,
) -> Float[Array, " C"]:
    """`moves.exact.squared_error` of each arrangement, run from the state before its start; `interpret` is for tests."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    depth, outputs = stack.depth, pred.shape[1]
    act = ACTIVATIONS[stack.activation]
    # A state of 64 rows and 64 units fills a quarter of the registers; wider ones take fewer rows.
    rows = max(LEAST, min(64, 4096 // (1 << (stack.w_in.shape[2] - 1).bit_length())))
    w_in, b_in = _filled(stack.w_in, 1, 2), _filled(stack.b_in, 1)
    w_out, b_out = _filled(stack.w_out, 1, 2), _filled(stack.b_out, 1)
    w_last = _filled(stack.w_last, 1)
    states = _filled(_filled(states, 2), 1, to=rows)
    pred, weight = _filled(pred, 0, to=rows), _filled(weight, 0, to=rows)
    width_tiles, hidden_tiles = tiles(w_last.shape[1]), tiles(b_in.shape[1])
    product = _product(interpret)

    def kernel(arrangements, starts, states, pred, weight, w_in, b_in, w_out, b_out, w_last, b_last, errors):
        candidate, row_tile = pl.program_id(0), pl.program_id(1)
        these = pl.ds(row_tile * rows, rows)
        start = starts[candidate]

        def block(k: Array, x: tuple[Array, ...]) -> tuple[Array, ...]:
            half_in, half_out = arrangements[candidate, k, 0], arrangements[candidate, k, 1]
            after = [part + b_out[half_out, pl.ds(*tile)][None] for part, tile in zip(x, width_tiles, strict=True)]
            for hidden in hidden_tiles:
                z = b_in[half_in, pl.ds(*hidden)][None]
                for part, tile in zip(x, width_tiles, strict=True):
                    z += product(part, w_in[half_in, pl.ds(*hidden), pl.ds(*tile)])
                active = act(z)
                for n, tile in enumerate(width_tiles):
                    after[n] += product(active, w_out[half_out, pl.ds(*tile), pl.ds(*hidden)])
            return tuple(after)

        x = lax.fori_loop(start, depth, block, tuple(states[start, these, pl.ds(*tile)] for tile in width_tiles))
        total = jnp.float32(0)
        for output in range(outputs):
            f = b_last[output]
            for part, tile in zip(x, width_tiles, strict=True):
                f += jnp.sum(part * w_last[output, pl.ds(*tile)][None], axis=1)
            total += jnp.sum(weight[these] * (f - pred[these, output]) ** 2)
        errors[candidate, row_tile] = total

    candidates = len(arrangements), len(weight) // rows
    run = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(candidates, jnp.float32),
        grid=candidates,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
    )
    return run(arrangements, starts, states, pred, weight, w_in, b_in, w_out, b_out, w_last, stack.b_last).sum(axis=1)


def _product(interpret: bool) -> Callable[[Array, Array], Array]:
    """a·bᵀ as a kernel takes it."""
    return partial(
        lax.dot_general,
        dimension_numbers=(((1,), (1,)), ((), ())),
        precision="highest" if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
        preferred_element_type=jnp.float32,
    )


def _filled(a: Array, *axes: int, to: int = LEAST) -> Array:
    """The array, filled up with zeros to a multiple of `to` along these axes."""
    return jnp.pad(a, [(0, -n % to if axis in axes else 0) for axis, n in enumerate(a.shape)])
