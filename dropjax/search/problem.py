"""The data that every search uses: the stack and the rows, on the devices and on the host."""

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
    """The data that every search uses."""

    stack: Stack
    x: Float[Array, "N d"]
    pred: Float[Array, "N o"]
    table: Table
    """The rows x and pred on the host."""

    @classmethod
    def of(cls, stack: Stack, x: Float[np.ndarray, "N d"], pred: Float[np.ndarray, "N o"]) -> "Problem":
        """Puts these host arrays on the devices and returns the problem that they pose."""
        on_devices: tuple[Array, Array] = mesh.put_rows((x, pred))
        return cls(mesh.put(stack), *on_devices, Table(x, pred))

    def first(self, rows: int) -> "Problem":
        """The problem with the table's first rows alone."""
        # The rows are cut on the host: on the device each new length would need another program.
        if rows >= len(self.x):
            return self
        few = Table(*(part[:rows] for part in self.table))
        on_devices: tuple[Array, Array] = mesh.put_rows(few)
        return Problem(self.stack, *on_devices, few)
