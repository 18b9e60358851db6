"""Forward peeling: which block comes next, and with which partner, is read from the table at the states reached so far.

What is left of pred is regressed on the states and on what the remaining blocks would add there, along the few directions
that count. One more block changes what the regression sees: to second order that follows for all blocks, behind the last one
placed or a few places before (`ordering.insertions`), and an exact look decides among the best. Where none of them goes on,
every block is looked at, and further back. After a portion of blocks the last ones are straightened (`ordering.prefixes`),
and those that then come last are given back. Partners are matched at each portion's states (`ordering.partners`). A step
owes nothing to the order of what is still to come, and nothing to what the weights say.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dropjax.core.options import MEMORY
from dropjax.core.stack import Stack, advance
from dropjax.ordering.insertions import insertions
from dropjax.ordering.partners import matched
from dropjax.ordering.prefixes import likelihoods, straighten_prefix
from dropjax.ordering.regressions import RIDGES, Outlook, likeliest, look, products, with_none
from dropjax.runtime import mesh

ROWS, MOST_ROWS, FEATURES = 4000, 10_000, 5000
"""Rows that peeling looks at; at most so many that partners are matched on; and hidden units of all blocks that remain, with
fewer than which these rows are more."""
COLUMNS, DIRECTIONS = 800, 8
"""Columns of a regression: the remaining blocks' residuals along as many directions as make so many, but at least 8."""
AHEAD = np.geomspace(1e-6, 0.1, 12, dtype=np.float32)
"""Ridges per row; the likeliest before a block is placed is taken."""
PLACES = 10
"""Places at which each of the remaining blocks is considered: behind the last one placed, and before each of nine."""
LOOKED_AT = 8
"""Blocks and places that are tried exactly: those that promise most, half of them before the last place."""
PORTION, PORTIONS = 4, 8
"""Blocks that are placed before partners are matched again: so many, or one in so many."""
WINDOW = 3
"""Portions that are straightened together, the last ones placed, and in which a block is looked for that was passed over."""
GIVEN_BACK = 2
"""Part of a portion, as its denominator, that is looked for again after straightening."""
CHANCE = 1e-3
"""Probability with which the best of L wrong blocks is taken for one that the table speaks for."""
SIZES = 3
"""Sizes of regression that are compiled: for all blocks, for two thirds of them, and for a third."""


class Peeled(NamedTuple):
    """How far a stack is peeled."""

    arrangement: Int[np.ndarray, "L 2"]
    """The blocks placed so far in their order, then the others, with the partners that they had last."""
    placed: int
    lift: Float[np.ndarray, " L"]
    """How much likelier, in nats, the outputs became by each block placed, before the next one is looked for; else 0."""

    @property
    def knows_nothing(self) -> bool:
        """Whether none of the first blocks made the outputs likelier than the best of L wrong ones does by chance: the table
        is another network's, or its rows are too few."""
        first = self.lift[: min(self.placed, portion(len(self.lift)))]
        return self.placed > 0 and bool(np.max(first) < by_chance(len(self.lift)))

    @property
    def is_astray(self) -> bool:
        """Whether in the first half most of the blocks placed last, two portions of them, made the outputs no likelier than
        chance does: with the right pairs they do."""
        last = self.lift[max(self.placed - 2 * portion(len(self.lift)), 0) : self.placed]
        begun = 2 * portion(len(self.lift)) <= self.placed <= len(self.lift) // 2
        return begun and bool(np.median(last) < by_chance(len(self.lift)))


def by_chance(depth: int) -> float:
    """How much likelier, in nats, the best of `depth` wrong blocks makes the outputs with a probability of `CHANCE`."""
    return float(np.log(depth / CHANCE))


def portion(depth: int) -> int:
    """Blocks that are placed at once of a stack of that depth."""
    return max(PORTION, depth // PORTIONS)


def start_peeling(pairs: Int[np.ndarray, "L 2"]) -> Peeled:
    """The state before the first block; the pairs are what partners are called by until they are matched."""
    return Peeled(pairs.astype(np.int32), 0, np.zeros(len(pairs)))


def rows_to_peel(stack: Stack, memory: int = MEMORY) -> int:
    """Rows that peeling uses: fewer where the features of all halves would not fit into `memory` four times."""
    return int(np.clip(memory // (16 * stack.w_in[..., 0].size), 1, MOST_ROWS))


def peel(
    stack: Stack,
    at: Peeled,
    certain: Int[np.ndarray, " L"],
    x: Float[np.ndarray, "N d"],
    pred: Float[np.ndarray, "N o"],
    belief: Float[np.ndarray, "L L"] | None = None,
) -> Peeled:
    """A portion of blocks more, or fewer, where none goes on with the partners at hand; x and pred are on the host.

    `certain` is each input half's partner where that is beyond doubt, and −1 elsewhere; `belief` is what else is known of
    each pair, in nats.
    """
    depth, size = stack.depth, portion(stack.depth)
    longer, none = _with_none(stack), np.full(2, depth, np.int32)

    def reached(blocks: Int[np.ndarray, "n 2"], x: Float[Array, "N d"]) -> Float[Array, "N d"]:
        return _reached(longer, _filled_up(blocks, depth, none), x)

    done, rest = np.split(at.arrangement, [at.placed])
    remaining = filled(len(rest), depth)
    features = remaining * stack.w_in.shape[1]
    many = int(ROWS * max(1, FEATURES / features) ** 2)  # on so many rows, fewer features cost no more
    x_many, pred_many = mesh.put_rows((x[:many], pred[:many]))
    x_few, pred_few = mesh.put_rows((x[:ROWS], pred[:ROWS]))
    rest = matched(longer, rest, certain, reached(done, x_many), pred_many, belief, remaining)
    left = _filled_up(rest, remaining, none)
    basis = directions(longer, left, reached(done, x_few), pred_few)
    outlook = Outlook(left[:, 0], mesh.fetch(seen_through(longer, left, basis)), pred_few, AHEAD[0])
    lift, doubted = at.lift.copy(), (certain[rest[:, 0]] < 0).any()
    k, further, can_be_missing = at.placed, False, True
    while k < min(at.placed + size, depth):
        settled, last = _parted(done, WINDOW * size if further else PLACES - 1, none)
        found = _next(longer, last, left, reached(settled, x_few), outlook, len(left) if further else LOOKED_AT)
        if found.rise < by_chance(depth):  # no block goes on with those placed, and with the partners at hand
            if can_be_missing and not further and k >= PLACES:
                further = True  # one may be missing further back
                continue
            if k > at.placed and doubted:
                break  # partners are matched again from here
        lift[k], can_be_missing = found.rise, found.rise > by_chance(depth)
        done = _real(np.concatenate([settled, found.blocks]), depth)
        left[found.row] = none
        outlook = outlook._replace(left=left[:, 0], ridge=found.ridge)
        k, further = k + 1, False
    settled, window = _parted(done, WINDOW * size, none)
    straight = straighten_prefix(longer, window, reached(settled, x_few), outlook)
    # Where the order was not straight, what comes last now may have come too early: it is given back.
    given_back = size // GIVEN_BACK if len(done) < depth and (straight != window).any() else 0
    arrangement = _real(np.concatenate([settled, straight, left]), depth)
    return Peeled(arrangement, max(len(done) - given_back, at.placed + 1), lift)


class _Next(NamedTuple):
    """The block that comes next, and the last ones placed with it put in."""

    blocks: Int[np.ndarray, "n 2"]
    row: int
    """Its row among those that remain."""
    rise: float
    ridge: Float[np.ndarray, ""]


def _next(
    stack: Stack,
    last: Int[np.ndarray, "n 2"],
    left: Int[np.ndarray, "M 2"],
    start: Float[Array, "N d"],
    outlook: Outlook,
    looked_at: int,
) -> _Next:
    """The block that makes the outputs likelier, behind the last ones placed or before any of them; these begin at `start`,
    and the stack ends with none. So many blocks are looked at: those that promise most, or all."""
    none = stack.depth - 1
    promised = jax.tree.map(mesh.fetch, insertions(stack, last, left, start, outlook, AHEAD))
    rows, places = _most_promising(promised.rise, last, left, none, looked_at)
    tried = np.stack([np.insert(last, place, left[row], axis=0) for row, place in zip(rows, places, strict=True)])
    others = np.tile(left[:, 0], (looked_at, 1))
    others[np.arange(looked_at), rows] = none
    outlook = outlook._replace(ridge=promised.ridge)
    rises = _rises(mesh.fetch(likelihoods(stack, tried, start, others, outlook)), promised.evidence)
    best = _first_likely(rises, places, by_chance(none))
    return _Next(tried[best], int(rows[best]), float(rises[best]) if np.isfinite(rises[best]) else 0.0, promised.ridge)


def _most_promising(
    rise: Float[np.ndarray, "M p"], last: Int[np.ndarray, "n 2"], left: Int[np.ndarray, "M 2"], depth: int, count: int
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Rows of `left` and places among the last blocks: half of them those that promise most, half before the last place; of
    all rows, each one's best place."""
    rise = np.where(np.isfinite(rise), rise, -np.finfo(np.float32).max)
    rise[left[:, 0] == depth] = -np.inf
    rise[:, : np.sum(last[:, 0] == depth)] = -np.inf  # before the first block there is one place
    found: list[tuple[int, int]] = []
    for most, end in ((count // 2, None), (count, -1)) if count < len(left) else ((count, None),):
        best = np.max(rise[:, :end], axis=1, initial=-np.inf)
        ranked = [(row, int(rise[row, :end].argmax())) for row in np.argsort(-best, kind="stable") if best[row] > -np.inf]
        found += [of for of in ranked if of not in found][: most - len(found)]
    rows, places = np.resize(np.array(found), (count, 2)).T
    return rows, places


def _rises(after: Float[np.ndarray, " K"], before: Float[np.ndarray, ""]) -> Float[np.ndarray, " K"]:
    """By how much the evidence rises; −∞ where the outputs overflow."""
    finite = np.isfinite(after) & np.isfinite(before)
    return np.subtract(after, before, where=finite, out=np.full(len(after), -np.inf))


def _first_likely(rises: Float[np.ndarray, " K"], places: Int[np.ndarray, " K"], likely: float) -> int:
    """The earliest of the places at which a block makes the outputs likelier beyond chance, else the likeliest.

    A block of small effect would be passed over for ever if the largest rise decided.
    """
    beyond = np.where(rises > likely, places, len(rises) + np.max(places))
    return int(np.lexsort((-rises, beyond if (rises > likely).any() else 0 * places))[0])


def _parted(
    done: Int[np.ndarray, "n 2"], size: int, none: Int[np.ndarray, "2"]
) -> tuple[Int[np.ndarray, "m 2"], Int[np.ndarray, "w 2"]]:
    """The blocks before the last `size` ones, and these; no blocks come first where there are fewer."""
    count = max(len(done) - size, 0)
    return done[:count], _filled_up(done[count:][::-1], size, none)[::-1]


def _real(blocks: Int[np.ndarray, "M 2"], depth: int) -> Int[np.ndarray, "m 2"]:
    return blocks[blocks[:, 0] < depth].astype(np.int32)


def _filled_up(blocks: Int[np.ndarray, "m 2"], size: int, none: Int[np.ndarray, "2"]) -> Int[np.ndarray, "M 2"]:
    return np.concatenate([blocks, np.tile(none, (size - len(blocks), 1))])


_with_none = jax.jit(with_none)
_reached = jax.jit(lambda stack, blocks, x: advance(stack, blocks, 0, len(blocks), x))


def filled(count: int, depth: int) -> int:
    """The number of blocks that regressions on so many are compiled for: the next of `SIZES` sizes."""
    size = -(-depth // SIZES)
    return -(-count // size) * size


def directions(
    stack: Stack, left: Int[np.ndarray, "M 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"]
) -> Float[np.ndarray, "d q"]:
    """Directions along which the remaining blocks' residuals move the outputs most: the principal ones of their slopes."""
    few = -(-len(x) // 2)
    slopes = np.array(mesh.fetch(_slopes(stack, left, x[:few], pred[:few])))
    slopes[0] += np.asarray(stack.w_last).T
    finite = np.nan_to_num(np.moveaxis(slopes, 2, 1).reshape(-1, x.shape[1]))
    return np.linalg.svd(finite, full_matrices=False)[2][: max(DIRECTIONS, COLUMNS // len(left))].T.copy()


@jax.jit
def _slopes(
    stack: Stack, left: Int[Array, "M 2"], x: Float[Array, "N d"], pred: Float[Array, "N o"]
) -> Float[Array, "1+M d o"]:
    """The outputs' slopes by the states, less the last layer, and by each remaining block's residual."""
    whole = jnp.swapaxes(stack.w_out[left[:, 1]], 1, 2)
    seen = look(stack, Outlook(left[:, 0], whole, pred, jnp.zeros(())), x)
    slopes = likeliest(seen, len(x) * jnp.asarray(RIDGES)).coefficients.reshape(1 + len(left), x.shape[1], -1)
    return slopes * jnp.repeat(seen.scales, jnp.array([1, len(left)]), total_repeat_length=1 + len(left))[:, None, None]


@jax.jit
def seen_through(stack: Stack, left: Int[Array, "M 2"], basis: Float[Array, "d q"]) -> Float[Array, "M h q"]:
    """The remaining blocks' residuals along some directions, as their hidden units make them; of narrow blocks the hidden
    units themselves, whoever their partners are."""
    width = stack.w_in.shape[1]
    if width <= basis.shape[1]:
        return jnp.broadcast_to(jnp.eye(width), (len(left), width, width))
    return products("mdh,dq->mhq", stack.w_out[left[:, 1]], basis)
