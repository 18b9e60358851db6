"""Several devices: rows of the table and candidate orders spread over a mesh of them.

The mesh is JAX's own, set with `jax.set_mesh`, with the axes "rows" and "orders"; JAX then divides every kernel and adds up
the devices' results. Without a mesh all functions here return their arguments as they are.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

T = TypeVar("T")

ROWS, ORDERS = "rows", "orders"


def make(sizes: dict[str, int] | None = None) -> Mesh | None:
    """A mesh of all devices, by default along the rows; None for a single device. Raises ValueError if sizes do not fit
    them."""
    devices = jax.devices()
    sizes = {ROWS: len(devices), ORDERS: 1} if sizes is None else sizes
    if math.prod(sizes.values()) != len(devices):
        got = " × ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"expected a mesh of {len(devices)}, as many devices as there are, got {got}")
    if len(devices) == 1:
        return None
    return jax.make_mesh((sizes[ROWS], sizes[ORDERS]), (ROWS, ORDERS), axis_types=(AxisType.Auto, AxisType.Auto))


def size(axis: str) -> int:
    """Number of devices along an axis of the mesh; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


def is_set() -> bool:
    """Whether a mesh is set."""
    return not jax.sharding.get_abstract_mesh().empty


def put(arrays: Any, *axes: str) -> Any:
    """Arrays of the host on the devices: whole on every one, or divided along their first dimensions' axes."""
    if not is_set():
        return jax.device_put(arrays)
    return jax.device_put(arrays, NamedSharding(jax.sharding.get_mesh(), PartitionSpec(*axes)))


def put_rows(arrays: Sequence[np.ndarray]) -> Any:
    """Arrays [N, …] of the host, their rows spread over the devices where N is a multiple of as many."""
    return put(tuple(arrays)) if len(arrays[0]) % size(ROWS) else put(tuple(arrays), ROWS)


def spread(a: Array, *axes: str | None) -> Array:
    """Within a kernel: this array divided along its first dimensions' axes, where its size allows."""
    if not is_set() or any(n % size(axis) for n, axis in zip(a.shape, axes, strict=False) if axis is not None):
        return a
    return lax.with_sharding_constraint(a, PartitionSpec(*axes))


def whole(arrays: T) -> T:
    """Within a kernel: these arrays whole on every device."""
    if not is_set():
        return arrays
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, PartitionSpec()), arrays)


def fetch(a: Array) -> np.ndarray:
    """Returns the array on the host, wherever its parts are."""
    if a.is_fully_addressable or a.is_fully_replicated:
        return np.asarray(a)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(a, tiled=True))


def agreed(number: int) -> int:
    """Returns the first process's number in every process, so that all take the same way."""
    if jax.process_count() == 1:
        return number
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return int(broadcast_one_to_all(np.int32(number)))


def is_first() -> bool:
    """Whether this is the process that prints and writes for all."""
    return jax.process_index() == 0
