"""Seed orders: a first guess at the order from one number per block (paper, Section 4.1)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dropjax.core.stack import Stack, pick, preactivation, product, residual
from dropjax.moves.exact import score_arrangements
from dropjax.runtime.device import side_by_side
from dropjax.runtime.programs import OF_FEW_ROWS, program

DIRECTIONS = ("ascending", "descending")

LOOKED_AT = 12
"""Blocks that a greedy order looks at before it places the next."""

SCORED_ROWS = 32
"""Number of rows on which seed orders are scored, enough to tell good ones from bad ones."""


@jax.jit
def block_statistics(stack: Stack, pairs: Int[Array, "L 2"], x: Float[Array, "N d"]) -> dict[str, Float[Array, " L"]]:
    """Each proxy for depth, for the blocks as `pairs` lists them; r and z at the raw inputs.

    delta_norm            mean ‖r(x)‖₂ (paper, Eq. 5)
    w_out_norm            ‖W_out‖_F (the paper's data-free proxy)
    w_out_l1              sum of |W_out|
    residual_std          norm of the residual's standard deviations, feature by feature
    w_in_norm             ‖W_in‖_F
    norm_product          ‖W_out‖_F·‖W_in‖_F
    read_out_alignment    ‖u·W_out‖_F / ‖W_out‖_F, u the last layer's rows at unit length
    contribution_std      norm of the standard deviations of W_last·r(x)
    mean_input_bias       mean of b_in
    activation_fraction   fraction of preactivations z > 0
    """
    directions = stack.w_last / jnp.maximum(jnp.linalg.norm(stack.w_last, axis=1, keepdims=True), 1e-30)

    def of_block(halves: Int[Array, "2"]) -> dict[str, Float[Array, ""]]:
        r = residual(stack, halves, x)
        w_in, w_out = stack.w_in[halves[0]], stack.w_out[halves[1]]
        in_norm, out_norm = jnp.linalg.norm(w_in), jnp.linalg.norm(w_out)
        return {
            "delta_norm": jnp.mean(jnp.linalg.norm(r, axis=1)),
            "w_out_norm": out_norm,
            "w_out_l1": jnp.sum(jnp.abs(w_out)),
            "residual_std": jnp.linalg.norm(jnp.std(r, axis=0)),
            "w_in_norm": in_norm,
            "norm_product": in_norm * out_norm,
            "read_out_alignment": jnp.linalg.norm(product(directions, w_out.T)) / jnp.maximum(out_norm, 1e-30),
            "contribution_std": jnp.linalg.norm(jnp.std(product(r, stack.w_last), axis=0)),
            "mean_input_bias": jnp.mean(stack.b_in[halves[0]]),
            "activation_fraction": jnp.mean(preactivation(stack, halves[0], x) > 0),
        }

    return lax.map(of_block, pairs)


STATISTICS = (
    "delta_norm",
    "w_out_norm",
    "w_out_l1",
    "residual_std",
    "w_in_norm",
    "norm_product",
    "read_out_alignment",
    "contribution_std",
    "mean_input_bias",
    "activation_fraction",
)
SEED_ORDERS = (*STATISTICS, "greedy", "random")


class _Greedy(NamedTuple):
    sizes: Float[Array, " L"]
    """Each block's mean residual norm where it was last looked at, negative where the largest comes first; ∞ once it is
    placed."""
    state: Float[Array, "N d"]
    """The state after the blocks placed so far."""


@jax.jit
def greedy_order(
    stack: Stack,
    pairs: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    delta_norm: Float[Array, " L"],
    descending: Bool[Array, ""],
) -> Int[Array, " L"]:
    """Place next the block whose residual is smallest (or largest) at the state reached so far.

    Residuals change slowly from state to state: only the `LOOKED_AT` blocks that were smallest when last looked at, at the
    raw inputs that `delta_norm` is of, are looked at again: fewer than L·`LOOKED_AT` block evaluations.
    """
    depth, sign = len(pairs), jnp.where(descending, -1, 1)
    most = min(LOOKED_AT, depth)

    def size(norm: Float[Array, "*L"]) -> Float[Array, "*L"]:
        largest = float(jnp.finfo(jnp.float32).max)  # blocks that overflow come last of all that are left
        return jnp.nan_to_num(sign * norm, nan=largest, posinf=largest)

    def place(at: _Greedy, placed: Int[Array, ""]) -> tuple[_Greedy, Int[Array, ""]]:
        _, nearest = lax.top_k(-at.sizes, most)

        def look(k: Int[Array, ""], looked: tuple[Array, Array]) -> tuple[Array, Array]:
            sizes, residuals = looked
            there = residual(stack, pick(pairs, nearest[k]), at.state)
            return sizes.at[k].set(size(jnp.mean(jnp.linalg.norm(there, axis=1)))), residuals.at[k].set(there)

        unseen = jnp.full(most, jnp.inf), jnp.zeros((most, *x.shape))
        sizes, residuals = lax.fori_loop(0, jnp.minimum(most, depth - placed), look, unseen)
        first = jnp.argmin(sizes)
        best = nearest[first]
        sizes = at.sizes.at[nearest].set(sizes).at[best].set(jnp.inf)
        return _Greedy(sizes, at.state + pick(residuals, first)), best

    _, order = lax.scan(place, _Greedy(size(delta_norm), x), jnp.arange(depth))
    return order


class Start(NamedTuple):
    """An order to start from."""

    name: str
    """A seed order and its direction."""
    arrangement: Int[np.ndarray, "L 2"]
    mse: float = 0.0
    """MSE over few rows; 0 if it is not known."""


class OneWay(NamedTuple):
    """Seed orders in one direction, as `PORTFOLIO` names them, and their MSE over the rows they were scored on."""

    arrangements: Int[Array, "K L 2"]
    mse: Float[Array, " K"]


PORTFOLIO = (*STATISTICS, "greedy")
"""The seed orders that are all tried, in both directions."""


def portfolio(stack: Stack, pairs: Int[np.ndarray, "L 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"]) -> list[Start]:
    """Every seed order both ways, each way scored as one batch."""
    ways = side_by_side(partial(one_way, stack, pairs, x, pred), np.array([False, True]))
    return [
        Start(f"{name} {direction}", arrangement, float(mse))
        for direction, way in zip(DIRECTIONS, ways, strict=True)
        for name, arrangement, mse in zip(PORTFOLIO, *map(np.asarray, way), strict=True)
    ]


@program(options=OF_FEW_ROWS, shared=True)
def one_way(
    stack: Stack,
    pairs: Int[Array, "L 2"],
    x: Float[Array, "N d"],
    pred: Float[Array, "N o"],
    descending: Bool[Array, ""],
) -> OneWay:
    """Every seed order in one direction."""
    statistics = block_statistics(stack, pairs, x)
    ascending = jnp.stack([statistics[name] for name in STATISTICS])
    sorted_by = jnp.argsort(jnp.where(descending, -ascending, ascending), axis=1)
    greedy = greedy_order(stack, pairs, x, statistics["delta_norm"], descending)
    orders = jnp.concatenate([sorted_by, greedy[None]])
    return OneWay(pairs[orders], score_arrangements(stack, pairs[orders], x[:SCORED_ROWS], pred[:SCORED_ROWS]))


def seed_order(
    name: str,
    direction: str,
    stack: Stack,
    pairs: Int[np.ndarray, "L 2"],
    x: Float[Array, "N d"],
    random_seed: int = 0,
) -> Int[np.ndarray, "L 2"]:
    """The arrangement of `pairs` in the seed order `name`; `direction` says whether the smallest or the largest is first.

    `name` is one of `SEED_ORDERS` (paper, Section 4.1); KeyError for another.
    """
    if name == "random":
        order = np.random.default_rng(random_seed).permutation(len(pairs))
    elif name == "greedy":
        delta_norm = block_statistics(stack, pairs, x)["delta_norm"]
        order = np.asarray(greedy_order(stack, pairs, x, delta_norm, np.bool_(direction == "descending")))
    else:
        statistic = np.asarray(block_statistics(stack, pairs, x)[name])
        order = np.argsort(statistic if direction == "ascending" else -statistic, kind="stable")
    return pairs[order]
