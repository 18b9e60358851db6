"""The signals that pair and order a stack, while it is trained."""

import numpy as np
from jaxtyping import Array, Float

from dropjax.core.stack import Stack, identity_arrangement
from dropjax.ordering.seeding import block_statistics
from dropjax.pairing.ratio import diagonal_dominance, match
from dropjax.reporting.analysis.orders import rank_correlation


def signals(stack: Stack, x: Float[Array, "N d"]) -> dict[str, float]:
    """The signals that pair and order a stack, compared with its own order, to follow a training.

    negative_traces       share of blocks with tr(W_out·W_in) < 0
    paired                share of pairs found by d(i, j) (paper, Section 3.1)
    own_min, own_median   d of right pairs
    other_max             d of the likeliest wrong pair
    w_out_norm, delta_norm, w_in_norm   rank correlations with depth, NaN of one block
    """
    score, trace = diagonal_dominance(stack.w_in, stack.w_out)
    own = score.diagonal()
    other = score[~np.eye(len(score), dtype=bool)]
    depth = np.arange(len(score))
    statistics = block_statistics(stack, identity_arrangement(stack.depth), x)
    norms = {name: np.asarray(statistics[name]) for name in ("w_out_norm", "delta_norm")}
    norms["w_in_norm"] = np.linalg.norm(np.asarray(stack.w_in), axis=(1, 2))
    return {
        "negative_traces": float(np.mean(trace.diagonal() < 0)),
        "paired": float(np.mean(match("ddr", score).partner == depth)),
        "own_min": float(own.min()),
        "own_median": float(np.median(own)),
        "other_max": float(other.max(initial=0)),
        **{name: rank_correlation(depth, norm) for name, norm in norms.items()},
    }
