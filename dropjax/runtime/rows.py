"""Sums, means and results over all rows of a table, in chunks of as many rows as a memory budget holds."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dropjax.runtime import mesh

T = TypeVar("T")


def mean_over_rows(
    of_chunk: Callable[..., T], x: Float[Array, "N d"], pred: Float[Array, "N o"], bytes_per_row: int, memory: int
) -> T:
    """Means over all predictions, from the sums that `of_chunk(x, pred, weight)` returns for chunks of rows within
    `memory`."""
    sums = sum_over_rows(of_chunk, (x, pred, jnp.ones(len(x))), bytes_per_row, memory)
    return mesh.whole(jax.tree.map(lambda a: a / pred.size, sums))


def sum_over_rows(of_chunk: Callable[..., T], parts: Sequence[Float[Array, "N ..."]], bytes_per_row: int, memory: int) -> T:
    """Sum of the results of `of_chunk(*parts)` over chunks of rows within `memory`; rows of zeros fill up the last one."""
    return sum_over_chunks(of_chunk, row_chunks(parts, bytes_per_row, memory))


def sum_over_chunks(of_chunk: Callable[..., T], chunks: Sequence[Float[Array, "C M ..."]]) -> T:
    """Sum of the results of `of_chunk(*parts)` over C chunks of M rows."""
    sums = of_chunk(*(chunk[0] for chunk in chunks))
    if len(chunks[0]) > 1:
        rest = tuple(chunk[1:] for chunk in chunks)
        sums, _ = lax.scan(lambda sums, chunk: (jax.tree.map(jnp.add, sums, of_chunk(*chunk)), None), sums, rest)
    return sums


def map_over_rows(of_chunk: Callable[..., T], parts: Sequence[Float[Array, "N ..."]], bytes_per_row: int, memory: int) -> T:
    """Results of `of_chunk(*parts)` for every row, rows first, computed in chunks of rows within `memory`."""
    chunks = row_chunks(parts, bytes_per_row, memory)
    by_chunk = lax.map(lambda chunk: of_chunk(*chunk), chunks)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: len(parts[0])], by_chunk)


def row_chunks(
    parts: Sequence[Float[Array, "N ..."]], bytes_per_row: int, memory: int
) -> tuple[Float[Array, "chunks size ..."], ...]:
    """Each part in the chunks of rows that `memory` holds."""
    size = chunk_size(len(parts[0]), bytes_per_row, memory)
    return tuple(in_chunks(part, size) for part in parts)


def chunk_size(rows: int, bytes_per_row: int, memory: int) -> int:
    """Rows of each of the fewest equal chunks that `memory` holds, a multiple of the devices that they are spread over."""
    chunks = -(-rows // max(1, min(rows, memory // bytes_per_row)))
    devices = mesh.size(mesh.ROWS)
    return -(-rows // chunks // devices) * devices


def in_chunks(a: Float[Array, "N ..."], size: int) -> Float[Array, "chunks size ..."]:
    """Rows in chunks, the last one filled up with zeros: as weights, they count for nothing."""
    chunks = -(-len(a) // size)
    filled = jnp.pad(a, ((0, chunks * size - len(a)),) + ((0, 0),) * (a.ndim - 1))
    return mesh.spread(filled.reshape(chunks, size, *a.shape[1:]), None, mesh.ROWS)
