"""The puzzle's table: inputs, predictions and true values, which the names of their columns distinguish."""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64

from dropjax.core.errors import InputError


class Table(NamedTuple):
    """The data: inputs, the stack's outputs, and the true values if they are given."""

    x: Float32[np.ndarray, "N d"]
    pred: Float32[np.ndarray, "N o"]
    true: Float32[np.ndarray, "N o"] | None


Parts = Sequence[Sequence[int]]
"""The indices of the columns of x, pred and true among all columns."""


def parts_of(where: object, names: Sequence[str]) -> Parts:
    """The columns `measurement_0`, …, `pred` or `pred_0`, …, and, if given, `true` or `true_0`, …. Raises `InputError`."""
    return [_columns(where, names, stem) for stem in ("measurement", "pred", "true")]


def table_of(where: object, names: Sequence[str], wide: Float[np.ndarray, "N wanted"], parts: Parts) -> Table:
    """The table whose wanted columns, in the order in which they stand, are `wide`; `names` are those of all columns.

    Raises `InputError` for a number that is not finite in float32.
    """
    wanted = sorted(column for part in parts for column in part)
    with np.errstate(over="ignore"):
        values = wide.astype(np.float32)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        got = wide[row, column]
        raise InputError(f"{where}: {names[wanted[column]]}: row {row + 1}: expected a finite float32 number, got {got}")
    x, pred, true = (np.ascontiguousarray(values[:, np.searchsorted(wanted, part)]) for part in parts)
    return Table(x, pred, true if parts[2] else None)


def table_of_frame(frame: Any, where: object = "frame") -> Table:
    """The table in a DataFrame of pandas, or of another library whose frames have `columns` and `frame[name]`.

    Raises `InputError`.
    """
    if not hasattr(frame, "columns") or not hasattr(frame, "shape"):
        raise InputError(f"{where}: expected a DataFrame, got a {type(frame).__name__}")
    names = [name if isinstance(name, str) else repr(name) for name in frame.columns]
    parts = parts_of(where, names)
    if frame.shape[0] == 0:
        raise InputError(f"{where}: expected at least one row, got none")
    wanted = sorted(column for part in parts for column in part)
    numbers = [_numbers(f"{where}: {names[column]}", np.asarray(frame[names[column]])) for column in wanted]
    return table_of(where, names, np.stack(numbers, axis=1), parts)


def _numbers(where: str, values: np.ndarray) -> Float64[np.ndarray, " N"]:
    """The numbers of a column. Raises `InputError` if it holds anything else."""
    if values.dtype.kind == "O":
        for row, value in enumerate(values, 1):
            if isinstance(value, bool) or not isinstance(value, Real | Decimal):
                raise InputError(f"{where}: row {row}: expected a number, got {str(value)[:40]!r}")
    elif values.dtype.kind not in "iuf":
        raise InputError(f"{where}: expected numbers, got {values.dtype}")
    return values.astype(np.float64)


def _columns(where: object, names: Sequence[str], stem: str) -> list[int]:
    """The indices of the columns `stem`_0, `stem`_1, …, or of the only column `stem`."""
    ours = [name for name in names if re.fullmatch(stem + r"(_[0-9]{1,9})?", name)]
    doubled = [name for name, times in Counter(ours).items() if times > 1]
    if doubled:
        raise InputError(f"{where}: expected every column once, got {doubled[0]} twice")
    if ours == [stem] and stem != "measurement":
        return [names.index(stem)]
    if stem in ours and len(ours) > 1:
        raise InputError(f"{where}: expected {stem} or {stem}_0, {stem}_1, …, got {stem} and {ours[ours[0] == stem]}")
    expected = [f"{stem}_{k}" for k in range(max(len(ours), 1))]
    if stem == "true" and not ours:
        return []
    missing = [name for name in expected if name not in names]
    if missing:
        what = f"{stem} or {missing[0]}" if stem != "measurement" else missing[0]
        got = ours or names
        shown = ", ".join(repr(name[:40]) for name in got[:4]) + (", …" if len(got) > 4 else "")
        raise InputError(f"{where}: expected a column {what}, got {shown or 'none'}")
    return [names.index(name) for name in expected]
