"""The MLP stack as a network of P = 2: its parts are input halves and output halves.

`dropjax.solve` orders it faster, with kernels of its own.
"""

from functools import cache

from jax.tree_util import Partial
from jaxtyping import Array, Float

from dropjax.core.stack import ACTIVATIONS, Stack, product
from dropjax.network.protocol import Block, Network, make


def mlp_network(stack: Stack) -> Network:
    """The stack's blocks and read-out, their arrangements being the stack's own."""
    parts = ((stack.w_in, stack.b_in), (stack.w_out, stack.b_out))
    return make(_block_with(stack.activation), parts, Partial(_read_out, stack.w_last, stack.b_last))


@cache  # so that stacks of one activation share their programs
def _block_with(activation: str) -> Block:
    def block(parts: tuple, x: Float[Array, "N d"]) -> Float[Array, "N d"]:
        (w_in, b_in), (w_out, b_out) = parts
        return x + product(ACTIVATIONS[activation](product(x, w_in) + b_in), w_out) + b_out

    return block


def _read_out(w_last: Float[Array, "o d"], b_last: Float[Array, " o"], x: Float[Array, "N d"]) -> Float[Array, "N o"]:
    return product(x, w_last) + b_last
