"""Which output half belongs to which input half, read from the table at the states reached so far.

Whatever the weights hide, the outputs bend where hidden units switch, and the next block's units switch on its own input
half's hyperplanes at exactly these states; those of later blocks on hyperplanes that the blocks between have shifted. So
what is left of pred is regressed on the states and on the hidden activations of all remaining input halves at once (`fit`),
and the one factorisation tells how well each output half would pass on what it found (`support`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax.core.stack import Stack, product
from dropjax.ordering.regressions import RIDGES, Posterior, design, hidden_features, inner, likeliest, posterior, surprise
from dropjax.runtime import mesh

SURER = 10.0
"""How many times too sure `support` is beside what the weights say, while all blocks remain: much of its misfit is no noise,
but what the regression leaves out, and the fewer blocks remain, the less that is."""


@jax.jit
def fit(stack: Stack, left: Int[Array, " m"], x: Float[Array, "N d"], pred: Float[Array, "N o"]) -> Posterior:
    """The regression on the states x and on the hidden activations of the input halves in `left`, its ridge the one of
    `RIDGES` with the largest evidence."""
    seen = design(stack, x, pred, hidden_features(stack, left, x))
    return posterior(seen, likeliest(seen, len(x) * jnp.asarray(RIDGES)))


@jax.jit
def support(stack: Stack, of: Posterior) -> Float[Array, "m L"]:
    """What speaks for each output half behind each of the remaining input halves, in nats, from a `fit`.
    See D20 in docs/method.md.

    If the two are a block and the next one, its hidden units move the outputs through the state alone: their coefficients
    are W_outᵀ·g, with the g of the states' own coefficients. The Bayes factor for that is the posterior density of this
    equation over its prior density (Dickey 1971, Annals of Mathematical Statistics 42(1)).
    """
    width, size = stack.w_out.shape[1:]
    by_state, by_hidden = of.scales
    states, slopes = of.group(0, width)
    outputs = slopes.shape[1]
    of_states = by_state**2 * of.covariance(states)

    def of_half(k: Int[Array, ""]) -> Float[Array, " L"]:
        group, own = of.group(width + k * size, size)
        of_group, with_states = by_hidden**2 * of.covariance(group), by_hidden * by_state * of.covariance(states, group)

        def behind(w_out: Float[Array, "d h"]) -> Float[Array, ""]:
            through = w_out.T
            expected = product(through, stack.w_last)
            missed = by_hidden * own - by_state * inner(through, slopes) - expected
            shared = inner(through, with_states)
            posterior = of_group - shared - shared.T + inner(inner(through, of_states), w_out)
            prior = (by_hidden**2 * jnp.eye(size) + by_state**2 * inner(through, w_out)) / of.ridge
            (before, spread_before), (after, spread) = surprise(prior, expected), surprise(posterior, missed)
            found = (outputs * (spread_before - spread) + jnp.sum(before - after) / of.noise) / 2
            return jnp.where(jnp.isfinite(found), found, -jnp.inf)

        return jax.vmap(behind)(stack.w_out)

    return lax.map(of_half, jnp.arange((of.root.shape[1] - width) // size))


def matched(
    stack: Stack,
    rest: Int[np.ndarray, "m 2"],
    certain: Int[np.ndarray, " L"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    belief: Float[np.ndarray, "L L"] | None = None,
    size: int | None = None,
) -> Int[np.ndarray, "m 2"]:
    """The remaining input halves with partners: the certain ones, and for the others those of the largest total support,
    `belief` included.

    The regression has `size` halves, if that is given: those that remain and, up to it, the stack's last one.
    """
    partner = certain[rest[:, 0]]
    open_ = partner < 0
    if open_.any():
        left = np.pad(rest[:, 0], (0, max(size or 0, len(rest)) - len(rest)), constant_values=stack.depth - 1)
        free = np.setdiff1d(rest[:, 1], partner[~open_])
        score = mesh.fetch(support(stack, fit(stack, left, x, pred)))[: len(rest)][np.ix_(open_, free)].astype(np.float64)
        least = np.min(score, where=np.isfinite(score), initial=0.0)
        score = np.where(np.isfinite(score), score, 2 * least - 1)
        if belief is not None:
            score = score / (SURER * len(rest) / len(certain)) + belief[np.ix_(rest[open_, 0], free)]
        partner[open_] = free[scipy.optimize.linear_sum_assignment(score, maximize=True)[1]]
    return np.stack([rest[:, 0], partner], axis=1).astype(np.int32)
