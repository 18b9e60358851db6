"""The residual stack: its arrays, and everything that follows from what a block computes (paper, Eqs. 1 and 2).

A block is two halves: an input half (W_in, b_in) and an output half (W_out, b_out). An *arrangement* says which halves
stand where: row k holds (input half, output half) of the block at position k. Exchanging rows swaps blocks; exchanging
entries of the second column re-pairs them. Every search walks over arrangements of one `Stack` that never changes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped
from numpy.typing import NDArray


def _erf(z: Any) -> np.ndarray:
    from scipy import special  # imported here because it is slow to import and most solves do not need it

    return np.asarray(special.erf(z))


def _expit(z: Any) -> np.ndarray:
    from scipy import special

    return np.asarray(special.expit(z))


class Activation(NamedTuple):
    """An activation: the function that a block's hidden units apply to their preactivations."""

    of: Callable[[Array], Array]
    twin: Callable[[np.ndarray], np.ndarray]
    """The activation in NumPy and float64, computed independently, for `replay`."""

    def __call__(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The activations, in JAX."""
        return self.of(z)


def leaky_relu(slope: float) -> Activation:
    """The activation that is z where z > 0 and slope·z elsewhere; its name is leaky_relu(SLOPE)."""
    return Activation(lambda z: jnp.where(z > 0, z, slope * z), lambda z: np.where(z > 0, z, slope * z))


class Activations(dict[str, Activation]):
    """The activations by name. The name leaky_relu(SLOPE) stands for an activation for every finite slope."""

    def __missing__(self, name: str) -> Activation:
        found = SLOPED.fullmatch(name)
        if found is None:
            raise KeyError(name)
        return leaky_relu(float(found[1]))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and SLOPED.fullmatch(name) is not None)


SLOPED = re.compile(r"leaky_relu\((-?\d+(?:\.\d+)?(?:e-?\d+)?)\)")

ACTIVATIONS = Activations(
    relu=Activation(jax.nn.relu, lambda z: np.maximum(z, 0)),
    gelu=Activation(lambda z: jax.nn.gelu(z, approximate=False), lambda z: z * (1 + _erf(z / 2**0.5)) / 2),
    gelu_tanh=Activation(
        lambda z: jax.nn.gelu(z, approximate=True),
        lambda z: z * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3))) / 2,
    ),
    silu=Activation(jax.nn.silu, lambda z: z * _expit(z)),
    tanh=Activation(jnp.tanh, np.tanh),
    quick_gelu=Activation(lambda z: z * jax.nn.sigmoid(1.702 * z), lambda z: z * _expit(1.702 * z)),
    leaky_relu=leaky_relu(0.01),
    relu6=Activation(lambda z: jnp.clip(z, 0, 6), lambda z: np.clip(z, 0, 6)),
    elu=Activation(
        lambda z: jnp.where(z > 0, z, jnp.exp(jnp.minimum(z, 0)) - 1),
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    ),
    sigmoid=Activation(jax.nn.sigmoid, _expit),
)
"""Every activation by its name; to add one, add a line."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stack:
    """L input halves, L output halves and the last layer, as arrays.

    With an arrangement, half k of either kind may stand anywhere. Without one (`forward`), input half k and output half k
    are block k.
    """

    w_in: Float[Array, "L h d"]
    b_in: Float[Array, "L h"]
    w_out: Float[Array, "L d h"]
    b_out: Float[Array, "L d"]
    w_last: Float[Array, "o d"]
    b_last: Float[Array, " o"]
    activation: str = field(default="relu", metadata={"static": True})
    precision: str = field(default="highest", metadata={"static": True})
    """Precision of all products with the weights, as `lax.Precision` names it. Only scores that decide nothing may use a
    lower one."""

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return self.w_in.shape[0]

    def arranged(self, arrangement: Int[Array, "L 2"]) -> "Stack":
        """The stack whose block k has the halves of row k."""
        ins, outs = arrangement[:, 0], arrangement[:, 1]
        return replace(self, w_in=self.w_in[ins], b_in=self.b_in[ins], w_out=self.w_out[outs], b_out=self.b_out[outs])


def product(a: Float[Array, "... n"], b: Float[Array, "m n"], precision: str = "highest") -> Float[Array, "... m"]:
    """a·bᵀ, by default in full float32, even if the device would use less: MSEs that decide depend on it."""
    return jnp.einsum("...n,mn->...m", a, b, precision=precision)


def pick(a: Shaped[Array, "n ..."], k: int | Int[Array, ""]) -> Shaped[Array, "..."]:
    """a[k] for 0 ≤ k < n: plain indexing would trace the handling of negative k each time."""
    return lax.dynamic_index_in_dim(a, k, keepdims=False, allow_negative_indices=False)


def preactivation(stack: Stack, half: Int[Array, ""], x: Float[Array, "N d"]) -> Float[Array, "N h"]:
    """W_in·x + b_in of one input half."""
    return product(x, pick(stack.w_in, half), stack.precision) + pick(stack.b_in, half)


@jax.jit  # so that a program that runs blocks in many places traces the function once
def residual(stack: Stack, halves: Int[Array, "2"], x: Float[Array, "N d"]) -> Float[Array, "N d"]:
    """r(x) = W_out·act(W_in·x + b_in) + b_out of the block made of `halves` (paper, Eq. 1)."""
    half_in, half_out = halves
    return outgoing(stack, half_out, preactivation(stack, half_in, x))


def outgoing(stack: Stack, half: Int[Array, ""], z: Float[Array, "N h"]) -> Float[Array, "N d"]:
    """W_out·act(z) + b_out of one output half, from an input half's preactivations."""
    return product(ACTIVATIONS[stack.activation](z), pick(stack.w_out, half), stack.precision) + pick(stack.b_out, half)


def advance(stack: Stack, arrangement: Int[Array, "L 2"], start, stop, x: Float[Array, "N d"]) -> Float[Array, "N d"]:
    """The state before position `stop`, from the state `x` before position `start`."""
    return lax.fori_loop(start, stop, lambda k, x: x + residual(stack, pick(arrangement, k), x), x)


def read_out(stack: Stack, x: Float[Array, "N d"]) -> Float[Array, "N o"]:
    """W_last·x + b_last."""
    return product(x, stack.w_last, stack.precision) + stack.b_last


def identity_arrangement(depth: int) -> Int[Array, "L 2"]:
    """Input half k with output half k, at position k."""
    return jnp.tile(jnp.arange(depth, dtype=jnp.int32)[:, None], (1, 2))


@jax.jit
def forward(stack: Stack, x: Float[Array, "N d"]) -> Float[Array, "N o"]:
    """The stack's outputs (paper, Eq. 2), with the halves in their own order."""
    return read_out(stack, advance(stack, identity_arrangement(stack.depth), 0, stack.depth, x))


class Trajectory(NamedTuple):
    """The states and preactivations of all rows on their way through the stack."""

    states: Float[Array, "L+1 N d"]
    """x_0 = x, x_{k+1} = x_k + r_k(x_k): row k is the state before position k."""
    preactivations: Float[Array, "L N h"]
    """W_in·x_k + b_in at each position."""


def trajectory(stack: Stack, arrangement: Int[Array, "L 2"], x: Float[Array, "N d"]) -> Trajectory:
    """Runs one pass forward and keeps the states and preactivations on the way."""

    def step(x: Float[Array, "N d"], halves: Int[Array, "2"]):
        z = preactivation(stack, halves[0], x)
        return x + outgoing(stack, halves[1], z), Trajectory(x, z)

    last, on_the_way = lax.scan(step, x, arrangement)
    return on_the_way._replace(states=jnp.concatenate([on_the_way.states, last[None]]))


def adjoints(
    stack: Stack, arrangement: Int[Array, "L 2"], at: Trajectory, behind: Float[Array, "N o d"] | None = None
) -> Float[Array, "L+1 N o d"]:
    """The outputs' derivatives by each state: g_k = g_{k+1} + J_k(x_k)ᵀ·g_{k+1}, g_L = W_last, or `behind` for a part."""
    act = ACTIVATIONS[stack.activation]

    def step(g: Float[Array, "N o d"], of_block: tuple[Int[Array, "2"], Float[Array, "N h"]]):
        (half_in, half_out), z = of_block
        _, slope = jax.jvp(act, (z,), (jnp.ones_like(z),))
        by_hidden = product(g, pick(stack.w_out, half_out).T, stack.precision) * slope[:, None, :]
        return g + product(by_hidden, pick(stack.w_in, half_in).T, stack.precision), g

    if behind is None:
        behind = jnp.broadcast_to(stack.w_last, (at.states.shape[1], *stack.w_last.shape))
    first, gs = lax.scan(step, behind, (arrangement, at.preactivations), reverse=True)
    return jnp.concatenate([first[None], gs])


def replay(stack: Stack, x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Computes the outputs [N, o] in float64 with NumPy: a reference for `forward` that shares none of its arithmetic."""
    act = ACTIVATIONS[stack.activation].twin
    w_in, b_in, w_out, b_out, w_last, b_last = (
        np.asarray(a, np.float64) for a in (stack.w_in, stack.b_in, stack.w_out, stack.b_out, stack.w_last, stack.b_last)
    )
    state = np.asarray(x, np.float64)
    for k in range(stack.depth):
        state = state + act(state @ w_in[k].T + b_in[k]) @ w_out[k].T + b_out[k]
    return state @ w_last.T + b_last
