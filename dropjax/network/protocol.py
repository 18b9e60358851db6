"""Any residual network as data: blocks of P parts, and the functions that run them.

A network has L positions. The block at a position is made of P *parts*, one of each kind: the attention and the MLP of a
transformer, say. `parts` holds each kind as one pytree whose arrays have a leading axis of L. An *arrangement* [L, P] says
which part of each kind stands at each position; every search walks over arrangements of one `Network` that never changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree, Shaped

from dropjax.core.errors import InputError

State = PyTree[Shaped[Array, "N ..."]]
"""The state that goes from block to block: arrays whose first axis is rows."""
Block = Callable[[tuple[PyTree, ...], State], State] | Sequence[Callable[[PyTree, State], State]]
"""`block(parts, state)` with one part of each kind, or for each kind a function `(part, state)`, to be run in turn."""


COMPILED = (
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"} if version("jaxlib") == "0.10.2" else None
)
"""Compiler options. In that version a library computes products and sums on CPUs, and it sums large arrays wrongly if blocks
are mapped over rows (JAX issue 39103). It is therefore used for products alone."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """L blocks of P parts, with the read-out and the loss of their outputs."""

    steps: tuple[Partial, ...]
    """One function of all P parts, or a function of one part for each kind; each takes and returns a state."""
    parts: tuple[PyTree[Shaped[Array, "L ..."]], ...]
    read_out: Partial
    """Outputs of the last state; a pytree of arrays whose first axis is rows."""
    row_loss: Partial
    """Loss [N] of each row, from outputs and target."""
    in_turn: bool = field(default=False, metadata={"static": True})
    """Whether `steps` has a function for each kind of part."""

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(jax.tree.leaves(self.parts)[0])

    @property
    def kinds(self) -> int:
        """Number of parts P of a block."""
        return len(self.parts)

    def pick(self, row: Int[Array, " P"]) -> tuple[PyTree[Array], ...]:
        """The parts that one row of an arrangement names."""
        return tuple(
            jax.tree.map(lambda a, k=row[p]: lax.dynamic_index_in_dim(a, k, keepdims=False), part)
            for p, part in enumerate(self.parts)
        )

    def run(self, parts: tuple[PyTree[Array], ...], state: State) -> State:
        """The state behind one block."""
        if not self.in_turn:
            return self.steps[0](parts, state)
        for step, part in zip(self.steps, parts, strict=True):
            state = step(part, state)
        return state


def squared_error(outputs: PyTree[Shaped[Array, "N ..."]], target: PyTree[Shaped[Array, "N ..."]]) -> Float[Array, " N"]:
    """Mean over each row's outputs of the squared differences from the target."""
    ours, theirs = jax.tree.leaves(outputs), jax.tree.leaves(target)
    sums = sum(jnp.sum((a - b) ** 2, axis=tuple(range(1, a.ndim))) for a, b in zip(ours, theirs, strict=True))
    return jnp.asarray(sums / sum(a[0].size for a in ours))


def itself(state: State) -> State:
    """Returns the state as it is: the read-out if none is given."""
    return state


def make(
    block: Block,
    parts: Sequence[PyTree],
    read_out: Callable[[State], PyTree] | None = None,
    loss: Callable[..., Array] | None = None,
    alone: bool = False,
) -> Network:
    """The network of these functions and parts; with `alone`, `loss` is a function of the outputs and of nothing else.

    Raises `InputError` if the parts are none: not a tuple of pytrees whose arrays all have one leading axis.
    """
    if isinstance(parts, dict | str) or not isinstance(parts, Sequence) or len(parts) == 0:
        raise InputError(f"parts: expected a tuple of P pytrees, one of each kind of part, got {type(parts).__name__}")
    leading: tuple[str, int] | None = None
    for p, part in enumerate(parts):
        if not jax.tree.leaves(part):
            raise InputError(f"parts[{p}]: expected a pytree with arrays in it, got none")
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            leading = _leading_axis(f"parts[{p}]{jax.tree_util.keystr(path)}", leaf, leading)
    in_turn = not callable(block)
    steps = tuple(block) if in_turn else (block,)
    if not all(map(callable, steps)) or (in_turn and len(steps) != len(parts)):
        got = f"{len(steps)} of them" if all(map(callable, steps)) else "something that cannot be called"
        raise InputError(f"block: expected a function (parts, state), or {len(parts)}, one for each kind of part, got {got}")
    row_loss = Partial(_alone, _partial(loss)) if alone and loss is not None else _partial(loss or squared_error)
    return Network(tuple(map(_partial, steps)), tuple(parts), _partial(read_out or itself), row_loss, in_turn)


def stack_parts(blocks: Sequence[PyTree]) -> PyTree[Shaped[Array, "L ..."]]:
    """One kind of part, for `order`, of its L blocks' pytrees: their arrays stacked on a leading axis.

    Raises `InputError` if blocks differ in structure, or their arrays in shape.
    """
    if len(blocks) == 0:
        raise InputError("blocks: expected at least one, got none")
    arrays = [jax.tree.map(jnp.asarray, block) for block in blocks]
    for k, block in enumerate(arrays):
        _alike(f"blocks[{k}]", "blocks[0]", arrays[0], block, types=False)
    return jax.tree.map(lambda *alike: jnp.stack(alike), *arrays)


def _alone(loss: Callable[[PyTree], Array], outputs: PyTree, target: None) -> Array:
    return loss(outputs)


def _partial(function: Callable) -> Partial:
    """The function as a pytree: what a `Partial` has bound is data, so that new data need no new program."""
    return function if isinstance(function, Partial) else Partial(function)


def _leading_axis(name: str, leaf: Any, leading: tuple[str, int] | None) -> tuple[str, int]:
    shape = np.shape(leaf) if not isinstance(leaf, list | str) else ()
    if not hasattr(leaf, "dtype") or len(shape) == 0 or np.asarray(leaf).dtype.hasobject:
        what = "an array of objects" if len(shape) else "a single number"
        what = what if hasattr(leaf, "dtype") else f"a {type(leaf).__name__}"
        raise InputError(f"{name}: expected an array with a leading axis of blocks, got {what}")
    if leading is not None and shape[0] != leading[1]:
        raise InputError(f"{name}: expected {leading[1]} blocks on its leading axis, as {leading[0]} has, got {shape[0]}")
    return leading or (name, shape[0])


def check(network: Network, x: State, target: PyTree | None, own_loss: bool) -> None:
    """Raises `InputError` if block, state, read-out, loss and target do not fit together; nothing is computed."""
    rows = _rows(x)
    for name, tree in (*((f"parts[{p}]", part) for p, part in enumerate(network.parts)), ("x", x), ("target", target)):
        _finite(name, tree)
    state = jax.eval_shape(lambda x: x, x)
    picked = jax.eval_shape(network.pick, jax.ShapeDtypeStruct((network.kinds,), np.int32))
    after = _shapes("block", network.run, picked, state)
    _alike("block", "the state that it was given", state, after)
    outputs = _shapes("read_out", network.read_out, state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if leaf.ndim == 0 or leaf.shape[0] != rows:
            raise InputError(
                f"read_out{jax.tree_util.keystr(path)}: expected outputs of {rows} rows, got the shape {leaf.shape}"
            )
    if target is not None:
        if not own_loss:
            _alike("target", "the outputs", outputs, jax.eval_shape(lambda t: t, target), types=False)
        for path, leaf in jax.tree_util.tree_leaves_with_path(target):
            if np.ndim(leaf) == 0 or np.shape(leaf)[0] != rows:
                name = f"target{jax.tree_util.keystr(path)}"
                raise InputError(f"{name}: expected {rows} rows, as many as x has, got the shape {np.shape(leaf)}")
    losses = _shapes("loss", network.row_loss, outputs, target)
    if getattr(losses, "shape", None) != (rows,):
        got = f"the shape {losses.shape}" if hasattr(losses, "shape") else f"a {type(losses).__name__}"
        raise InputError(f"loss: expected one number for each of {rows} rows, got {got}")


def _rows(x: State) -> int:
    """The number of rows that all arrays of a state agree on."""
    leaves = jax.tree_util.tree_leaves_with_path(x)
    if not leaves:
        raise InputError("x: expected an array of rows, or a pytree of such, got nothing")
    rows: tuple[str, int] | None = None
    for path, leaf in leaves:
        name = f"x{jax.tree_util.keystr(path)}"
        if not hasattr(leaf, "dtype") or np.ndim(leaf) == 0 or len(leaf) == 0:
            raise InputError(f"{name}: expected an array of at least one row, got {_described(leaf)}")
        if rows is not None and len(leaf) != rows[1]:
            raise InputError(f"{name}: expected {rows[1]} rows, as {rows[0]} has, got {len(leaf)}")
        rows = rows or (name, len(leaf))
    assert rows is not None
    return rows[1]


def _described(leaf: Any) -> str:
    return f"the shape {np.shape(leaf)}" if hasattr(leaf, "dtype") else f"a {type(leaf).__name__}"


def _finite(name: str, tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(getattr(leaf, "dtype", np.int32), jnp.inexact) and not bool(np.isfinite(np.asarray(leaf)).all()):
            raise InputError(f"{name}{jax.tree_util.keystr(path)}: expected finite numbers, got NaN or infinity")


def _shapes(name: str, function: Callable, *arguments: Any) -> Any:
    """What the function returns, as shapes; its own errors become one line."""
    try:
        return jax.eval_shape(function, *arguments)
    except InputError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
        raise InputError(f"{name}: it cannot be run on these arrays: {type(error).__name__}: {lines[0][:200]}") from error


def _alike(name: str, what: str, expected: PyTree, got: PyTree, types: bool = True) -> None:
    """Raises `InputError` if two trees of shapes differ."""
    if jax.tree.structure(expected) != jax.tree.structure(got):
        raise InputError(
            f"{name}: expected the structure of {what}, {jax.tree.structure(expected)}, got {jax.tree.structure(got)}"
        )
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        same = ours.shape == theirs.shape and (ours.dtype == theirs.dtype or not types)
        if not same:
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise InputError(
                f"{where}: expected {ours.dtype}{list(ours.shape)} as {what}, got {theirs.dtype}{list(theirs.shape)}"
            )
