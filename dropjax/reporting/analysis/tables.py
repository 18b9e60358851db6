"""The features of a table, and how they relate to pred."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Table(NamedTuple):
    """Statistics of a table's features."""

    mean: Float[np.ndarray, " d"]
    deviation: Float[np.ndarray, " d"]
    skewness: Float[np.ndarray, " d"]
    kurtosis: Float[np.ndarray, " d"]
    """Excess kurtosis: 0 for a normal distribution, −1.2 for a uniform one, −2 for two equally likely values."""
    near_one: Float[np.ndarray, " d"]
    """Share of values within 0.1 of +1 or −1."""
    smallest: float
    largest: float
    distinct: Int[np.ndarray, " d"]
    """The number of different values of each feature."""
    correlation: Float[np.ndarray, "d d"]
    spectrum: Float[np.ndarray, " d"]
    """Shares of the correlation matrix's eigenvalues, largest first."""
    effective_rank: float
    """exp of the entropy of `spectrum`."""
    next_row: Float[np.ndarray, " d"]
    """Correlation of each feature with itself one row later, which shows an order in time."""
    linear: Float[np.ndarray, " o"]
    """Share of pred's variance that a linear fit on the features explains."""


def describe_table(x: Float[np.ndarray, "N d"], pred: Float[np.ndarray, "N o"]) -> Table:
    """The statistics of a table; constant features count as uncorrelated."""
    x, pred = np.asarray(x, np.float64), np.asarray(pred, np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    z = (x - mean) / np.where(deviation > 0, deviation, 1)
    correlation = z.T @ z / len(z)
    spectrum = np.maximum(np.linalg.eigvalsh(correlation)[::-1], 0)
    spectrum = spectrum / max(spectrum.sum(), np.finfo(float).tiny)
    design = np.column_stack([z, np.ones(len(z))])
    rest = pred - design @ np.linalg.lstsq(design, pred, rcond=None)[0]
    variance = pred.var(axis=0)
    return Table(
        mean=mean,
        deviation=deviation,
        skewness=np.mean(z**3, axis=0),
        kurtosis=np.mean(z**4, axis=0) - 3,
        near_one=np.mean(np.abs(np.abs(x) - 1) <= 0.1, axis=0),
        smallest=float(x.min()),
        largest=float(x.max()),
        distinct=np.array([len(np.unique(column)) for column in x.T]),
        correlation=correlation,
        spectrum=spectrum,
        effective_rank=float(np.exp(-np.sum(spectrum * np.log(np.where(spectrum > 0, spectrum, 1))))),
        next_row=np.mean(z[1:] * z[:-1], axis=0) if len(z) > 1 else np.zeros(x.shape[1]),
        linear=1 - rest.var(axis=0) / np.where(variance > 0, variance, 1),
    )
