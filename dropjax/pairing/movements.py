"""How far training moved each weight, as the distribution of all weights tells it."""

import numpy as np
from jaxtyping import Float

BINS, WIDTH = 4096, 0.07
"""Bins of the weights' distribution, and the standard deviation of the kernel that smooths it, in that of the weights."""

LARGEST_RATIO = 1e3
"""The largest ratio, of the two kinds' root mean squares, by which their movements are weighed."""


def beside_movements(
    ours: Float[np.ndarray, "L h d"], theirs: Float[np.ndarray, "L h d"]
) -> tuple[Float[np.ndarray, "L k d"], Float[np.ndarray, "L k d"]]:
    """The input halves followed by their movements, and the output halves' movements followed by these halves: products of
    the two are sums of each half's products with the other's movements. All are multiples of root mean squares."""
    our_size, their_size = root_mean_square(ours), root_mean_square(theirs)
    # Density's slope is by the weight itself: where weights are small, a movement tells more.
    ratio = float(np.clip(our_size / their_size, 1 / LARGEST_RATIO, LARGEST_RATIO))
    of_theirs = ratio * movements(theirs), theirs / (ratio * their_size)
    return np.concatenate([ours / our_size, movements(ours)], axis=1), np.concatenate(of_theirs, axis=1)


def movements(weights: Float[np.ndarray, "L h d"]) -> Float[np.ndarray, "L h d"]:
    """−(log p)′ at every weight, with p a kernel estimate of the density of all weights as multiples of their root mean
    square: up to a factor, how far a weight is expected to have moved since it was drawn. See D22 in docs/method.md.

    Of uniformly drawn weights those at the edge of the range have moved outwards, and nothing is known of the others; of
    normally drawn ones it is the weight itself. Weights that are all zero have not moved.
    """
    standard = weights / root_mean_square(weights)
    if not standard.any():
        return np.zeros_like(weights)
    top = 1.2 * float(np.max(np.abs(standard)))
    count, edges = np.histogram(standard, BINS, (-top, top))
    step = edges[1] - edges[0]
    reach = np.arange(-(BINS // 2) + 1, BINS // 2) * step / WIDTH
    kernel = np.exp(-(reach**2) / 2)
    density, slope = (np.convolve(count + count[::-1], of, "same") for of in (kernel, -reach * kernel))
    known = np.where(density > 0, -slope / np.where(density > 0, density, 1), 0) / WIDTH
    return np.interp(standard, (edges[1:] + edges[:-1]) / 2, known).astype(np.float32)


def root_mean_square(weights: Float[np.ndarray, "L h d"]) -> float:
    """The root mean square of all weights; 1 of weights that are all zero."""
    return float(np.sqrt(np.mean(np.square(weights, dtype=np.float64)))) or 1.0
