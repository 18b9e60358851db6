"""Checks of the arrays that `dropjax.pair` is given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Half = Float[Array | np.ndarray, "L a b"]


def checked(w_in: Any, w_out: Any) -> tuple[Float[Array | np.ndarray, "L h d"], Float[Array | np.ndarray, "L d h"]]:
    """Returns input halves [L, h, d] and output halves [L, d, h], arrays or lists of matrices, as float32.

    Raises ValueError where they are no real finite numbers of such shapes, or an entry is masked.
    """
    ours, theirs = _numbers("w_in", "[L, h, d]", w_in), _numbers("w_out", "[L, d, h]", w_out)
    count, hidden, width = ours.shape
    if len(theirs) != count:
        raise ValueError(f"w_out: expected {count} output halves, as many as input halves, got {len(theirs)}")
    if theirs.shape != (count, width, hidden):
        wanted = f"[{count}, {width}, {hidden}] to go with w_in {list(ours.shape)}"
        raise ValueError(f"w_out: expected [L, d, h] = {wanted}, got {list(theirs.shape)}")
    return ours, theirs


def _numbers(name: str, shape: str, value: Any) -> Half:
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return value  # only the search spreads arrays over hosts, and a puzzle's are checked where it is read
    try:
        array = np.asarray(
            [_unmasked(name, one) for one in value] if isinstance(value, list | tuple) else _unmasked(name, value)
        )
    except (TypeError, RuntimeError, ValueError) as error:
        if str(error).startswith(f"{name}: "):
            raise
        got = "matrices of different shapes" if "inhomogeneous" in str(error) else " ".join(str(error).split())[:80]
        raise ValueError(f"{name}: expected one array {shape} of numbers, got {got}") from None
    if array.ndim != 3:
        raise ValueError(f"{name}: expected three dimensions {shape}, got {list(array.shape)}")
    if 0 in array.shape:
        raise ValueError(f"{name}: expected at least one of each in {shape}, got {list(array.shape)}")
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32, copy=False)
    for k, half in enumerate(numbers):
        if not np.isfinite(half).all():
            place = [k, *np.argwhere(~np.isfinite(half))[0].tolist()]
            raise ValueError(f"{name}: expected finite float32 numbers, got {array[tuple(place)]} at {place}")
    return value if isinstance(value, jax.Array) and value.dtype == jnp.float32 else numbers


def _unmasked(name: str, value: Any) -> Any:
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise ValueError(f"{name}: expected no masked entries, got {np.ma.count_masked(value)}")
        return value.data
    return value
