"""Checks, under test, that arguments and results have the types and shapes in their annotations."""

from collections.abc import Callable
from typing import Any

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

# Where JAX's arrays are written, NumPy's will do, and NumPy's scalars for arrays without dimensions.
jaxtyping.Array = jax.Array | np.ndarray | np.generic  # pyright: ignore[reportAttributeAccessIssue]

LIKE_A_READER = BeartypeConf(is_pep484_tower=True)
"""Accepts an int for a float, as type checkers do."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its types checked; constructors are left alone, for JAX puts placeholders and batches into trees."""
    return function if function.__name__ == "__init__" else beartype(conf=LIKE_A_READER)(function)


def install() -> None:
    """Checks every function of dropjax that is imported from here on, with the sizes of all its arrays taken together."""
    jaxtyping.install_import_hook("dropjax", "contracts.checked")
