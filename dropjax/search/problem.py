"""What every search looks at: the stack and the rows, on the devices and on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from dropjax.core.stack import Stack
from dropjax.runtime import mesh


class Table(NamedTuple):
    """Inputs and predictions on the host."""

    x: Float[np.ndarray, "N d"]
    pred: Float[np.ndarray, "N o"]


class Problem(NamedTuple):
    """What every search looks at."""

    stack: Stack
    x: Float[Array, "N d"]
    pred: Float[Array, "N o"]
    table: Table
    """The same rows on the host."""

    @classmethod
    def of(cls, stack: Stack, x: Float[np.ndarray, "N d"], pred: Float[np.ndarray, "N o"]) -> "Problem":
        """The problem of these arrays of the host, put on the devices."""
        on_devices: tuple[Array, Array] = mesh.put_rows((x, pred))
        return cls(mesh.put(stack), *on_devices, Table(x, pred))

    def first(self, rows: int) -> "Problem":
        """The problem with the table's first rows alone."""
        # Cut on the host: on the device each new length would be one more program to compile.
        if rows >= len(self.x):
            return self
        few = Table(*(part[:rows] for part in self.table))
        on_devices: tuple[Array, Array] = mesh.put_rows(few)
        return Problem(self.stack, *on_devices, few)
