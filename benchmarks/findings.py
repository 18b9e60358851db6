"""The paper's open questions (Sections 5, 6.2, 6.3) as experiments: findings.py PUZZLE [--only NAME …] [--json FILE].

PUZZLE is the real puzzle or any other; trained stacks of several recipes are made along the way. With --json each record is
written as soon as it is there, and a run that was stopped goes on where it was.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dropjax import console
from dropjax.core.protocols import Context, T
from dropjax.core.stack import Stack, identity_arrangement
from dropjax.io.loading import load
from dropjax.make import training
from dropjax.moves.arrangements import adjacent_swaps, insertions, moved, pairs_of_positions
from dropjax.moves.exact import score_arrangements, squared_error
from dropjax.ordering import seeding
from dropjax.pairing.portfolio import pair
from dropjax.reporting import analysis
from dropjax.runtime import device
from dropjax.runtime.writing import atomic_write, ensure_writable
from dropjax.search.order_rungs import ByFlips
from dropjax.search.problem import Problem
from dropjax.search.rungs import Ground
from dropjax.search.rungs import climb as climb_rung
from dropjax.search.solving import solve

SEARCH_ROWS = 2000
STARTS = 12
"""Random starts of each neighbourhood on the small stacks, and of least squares on the puzzle."""

MOST_ROUNDS = 16
"""Largest number of rounds of a repair in the league: more than either of the paper's seeds takes."""

APPENDIX_SEEDS = (0, 1)
LAST_EPOCHS = 20
"""After each of these the MSE over all rows is taken: it jumps."""
SHOWN_EPOCHS = (1, 5, 10, 25, 50, 100, 150, 200)

small = partial(training.Recipe, depth=16, hidden=32, epochs=40)
"""Trained on a generated table of 16 features: small enough for many climbs."""

RECIPES = {
    "adam 1e-3": small(rate=1e-3),
    "adamw 1e-3, decay 0.1": small(optimizer="adamw", rate=1e-3, decay=0.1),
    "adamw 1e-3, decay 1": small(optimizer="adamw", rate=1e-3, decay=1.0),
    "adam 1e-4": small(rate=1e-4),
    "sgd 1e-2": small(optimizer="sgd", rate=1e-2),
}


class Subject(NamedTuple):
    """A stack in its own order, with its table."""

    name: str
    problem: Problem

    @property
    def few(self) -> Problem:
        """What searches decide on."""
        return self.problem.first(SEARCH_ROWS)


@cache
def given(path: Path) -> Subject:
    """The puzzle at `path`, solved."""
    puzzle = load(path)
    solution = solve(puzzle)
    assert solution.solved, "the experiments need the answer"
    return Subject("given puzzle", Problem.of(solution.stack, puzzle.x, puzzle.pred))


@cache
def example() -> Subject:
    """The trained stack that ships with the package."""
    with resources.as_file(resources.files("dropjax") / "example.safetensors") as path:
        return given(path)._replace(name="shipped example")


@cache
def trained(recipe: str) -> Subject:
    """A small stack of that recipe."""
    x, true = training.generate_table(0, 4000, 16, noise=0.1)
    (stack,) = training.train(RECIPES[recipe], x, true)
    puzzle, answer = training.drop(stack, x, true, 0)
    pieces = puzzle.stack().arranged(jnp.asarray(puzzle.arrangement(answer)))
    return Subject(recipe, Problem.of(pieces, puzzle.x, puzzle.pred))


def proxies(subject: Subject) -> dict[str, Float[np.ndarray, " L"]]:
    """Numbers from which a block's depth may be guessed, in the order of the stack."""
    few, order = subject.few, identity_arrangement(subject.problem.stack.depth)
    stack = few.stack
    w_in, w_out, last = (np.asarray(a, np.float64) for a in (stack.w_in, stack.w_out, stack.w_last))
    blocks = analysis.measure_blocks(stack, few.x)
    directions = last / np.linalg.norm(last, axis=1, keepdims=True)
    found = {name: np.asarray(value) for name, value in seeding.block_statistics(stack, order, few.x).items()}
    found = {name: found[name] for name in ("delta_norm", "w_out_norm", "w_out_l1", "residual_std")}
    return found | {
        "w_in_norm": np.linalg.norm(w_in, axis=(1, 2)),
        "product_norm": np.linalg.norm(w_out @ w_in, axis=(1, 2)),
        "trace": np.trace(w_out @ w_in, axis1=1, axis2=2),
        "read_out_alignment": np.linalg.norm(directions @ w_out, axis=(1, 2)) / np.linalg.norm(w_out, axis=(1, 2)),
        "residual_norm_in_place": np.asarray(blocks.residual_norm),
    }


def seeds(subject: Subject) -> dict[str, Int[np.ndarray, " L"]]:
    """Every seed order, as the right places it lists."""
    found = {}
    for name, value in proxies(subject).items():
        for direction, sign in (("ascending", 1), ("descending", -1)):
            found[f"{name} {direction}"] = np.argsort(sign * value, kind="stable")
    few = subject.few
    pairs = np.asarray(identity_arrangement(few.stack.depth))
    for direction in seeding.DIRECTIONS:
        found[f"greedy {direction}"] = seeding.seed_order("greedy", direction, few.stack, pairs, few.x)[:, 0]
    for seed in range(3):
        found[f"random {seed}"] = np.random.default_rng(seed).permutation(few.stack.depth)
    return found


def blocks_at(places: Int[np.ndarray, " L"]) -> Int[np.ndarray, "L 2"]:
    """The arrangement that puts the block of each right place where it is listed."""
    return np.stack([places, places], axis=1).astype(np.int32)


def repaired(subject: Subject, rows: int, places: Int[np.ndarray, " L"], most: int = 400) -> dict[str, Any]:
    """Bubble repair on the first `rows`, of at most so many rounds, an even number: what sorting predicts, and what it took.

    Repair both ways is left out where the other did not end by itself.
    """
    few = subject.problem.first(rows)
    route = analysis.repair_route(subject.problem, few, blocks_at(places), most)
    decided = analysis.decisions([order[:, 0] for order in route.arrangements])
    wrong = [exchange for exchange in decided.kept if not exchange.sorts]
    ended = len(route.table) <= most
    both = analysis.repair_both_ways(few, blocks_at(places)) if ended else None
    return {
        **analysis.disorder(places)._asdict(),
        "mse": route.table[0][2],
        "rounds_taken": len(route.table) - 1,
        "swaps": len(decided.kept),
        "wrong": len(wrong),
        "missed": len(decided.missed),
        "wrong_neighbours": sum(exchange.right - exchange.left <= 2 for exchange in wrong),
        "left": analysis.disorder(route.arrangements[-1][:, 0]).inversions,
        "mse_left": route.table[-1][2],
        "ended": ended,
        "both_ways_sweeps": None if both is None else len(both.swaps),
        "both_ways_swaps": None if both is None else sum(both.swaps),
        "both_ways_left": None if both is None else analysis.disorder(both.arrangement[:, 0]).inversions,
    }


@jax.jit
def climb(
    stack: Stack, arrangement: Int[Array, "L 2"], moves: Int[Array, "K 3"], x: Float[Array, "N d"], pred: Float[Array, "N o"]
) -> tuple[Int[Array, "L 2"], Int[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """First improvement: the moves are tried in their order, again and again, until none lowers the MSE.

    The arrangement, the moves kept, the MSE and the passes.
    """
    score = lambda order: squared_error(stack, order, 0, x, pred, jnp.ones(len(x))) / pred.size  # noqa: E731

    def try_move(k, at):
        order, kept, mse = at
        candidate = moved(order, moves[k])
        new = score(candidate)
        better = new < mse
        return jnp.where(better, candidate, order), kept + better, jnp.where(better, new, mse)

    def one_pass(at):
        order, kept, mse, passes, _ = at
        order, now, mse = lax.fori_loop(0, len(moves), try_move, (order, kept, mse))
        return order, now, mse, passes + 1, now > kept

    zero = jnp.int32(0)
    start = (arrangement, zero, score(arrangement), zero, jnp.bool_(True))
    return lax.while_loop(lambda at: at[-1], one_pass, start)[:4]


def climbed(subject: Subject, neighbourhood: str, rows: int, places: Int[np.ndarray, " L"], shuffle: int) -> dict[str, Any]:
    """One climb; the moves are tried in a random order."""
    few = subject.problem.first(rows)
    depth = len(places)
    moves = {"adjacent": adjacent_swaps(depth), "swap": pairs_of_positions(depth, 0), "insertion": insertions(depth)}
    order = np.random.default_rng(shuffle).permutation(moves[neighbourhood])
    found, kept, mse, passes = climb(few.stack, jnp.asarray(blocks_at(places)), jnp.asarray(order), few.x, few.pred)
    left = np.asarray(found)[:, 0]
    all_rows = score_arrangements(few.stack, found[None], subject.problem.x, subject.problem.pred)
    return {
        "solved": bool(np.array_equal(left, np.arange(depth))),
        "mse_left": float(all_rows[0]),
        "mse_left_on_its_rows": float(mse),
        "kept": int(kept),
        "passes": int(passes),
        "inversions": analysis.disorder(places).inversions,
        "left": analysis.disorder(left).inversions,
    }


mse_of = jax.jit(training.loss)


# Experiments: (key of a record, how to make it)

Task = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


def league(path: Path) -> Iterator[Task]:
    """Every seed order repaired, on trained stacks and on the puzzle, in at most `MOST_ROUNDS` rounds."""
    for subject in (*(partial(trained, recipe) for recipe in RECIPES), partial(given, path), example):
        for seed, places in sorted(seeds(subject()).items(), key=lambda item: -analysis.disorder(item[1]).kendall):
            key = {"stack": subject().name, "seed": seed}
            yield (
                key,
                partial(lambda subject, places: repaired(subject(), SEARCH_ROWS, places, MOST_ROUNDS), subject, places),
            )


def least_squares(path: Path) -> Iterator[Task]:
    """Orders by least squares on the puzzle, from each seed order and from random ones, each alone."""

    def run(places: Int[np.ndarray, " L"]) -> dict[str, Any]:
        stack, _, _, table = given(path).problem
        weights = pair(np.asarray(stack.w_in), np.asarray(stack.w_out))
        ground = Ground.of(stack, table, weights, seed=0)
        start, regressions = ground.judged(blocks_at(places)), []

        def counted(function: Callable[[], T], like: T) -> T:
            regressions.append(1)
            return function()

        found = climb_rung(ByFlips(ground), start, Context(keep=counted))
        return {
            **analysis.disorder(places)._asdict(),
            "mse": start.mse,
            "regressions": len(regressions),
            "mse_left": found.mse,
            "left": analysis.disorder(found.arrangement[:, 0]).inversions,
        }

    starts = seeds(given(path))
    starts |= {f"random {k}": np.random.default_rng(k).permutation(given(path).problem.stack.depth) for k in range(STARTS)}
    for seed, places in sorted(starts.items(), key=lambda item: -analysis.disorder(item[1]).kendall):
        yield {"stack": "given puzzle", "seed": seed}, partial(run, places)


def rows(path: Path) -> Iterator[Task]:
    """The paper's two seeds repaired on fewer and more rows."""
    for count in (50, 100, 200, 500, 1000, 2000, 5000, 10_000):
        for seed in ("delta_norm ascending", "w_out_norm ascending"):
            key = {"stack": "given puzzle", "seed": seed, "on_rows": count}
            yield key, partial(lambda count, seed: repaired(given(path), count, seeds(given(path))[seed]), count, seed)


def minima(path: Path) -> Iterator[Task]:
    """Climbs in three neighbourhoods, from random orders and from the paper's seeds."""

    def tasks(subject: Callable[[], Subject], name: str, on_rows: int, starts: int) -> Iterator[Task]:
        for start in ("delta_norm ascending", "w_out_norm ascending", *(f"random {k}" for k in range(starts))):
            for neighbourhood in ("adjacent", "swap", "insertion"):

                def run(start=start, neighbourhood=neighbourhood):
                    depth = subject().problem.stack.depth
                    kind, _, seed = start.partition(" ")
                    places = (
                        np.random.default_rng(int(seed)).permutation(depth) if kind == "random" else seeds(subject())[start]
                    )
                    return climbed(subject(), neighbourhood, on_rows, places, int(seed) if kind == "random" else 0)

                yield {"stack": name, "start": start, "neighbourhood": neighbourhood, "on_rows": on_rows}, run

    for recipe in RECIPES:
        yield from tasks(partial(trained, recipe), recipe, 500, STARTS)
    for recipe, rows in itertools.product(("adam 1e-3", "adamw 1e-3, decay 0.1"), (50, 100, 200, 2000)):
        yield from tasks(partial(trained, recipe), recipe, rows, STARTS)
    yield from tasks(partial(given, path), "given puzzle", 250, 2)
    yield from tasks(example, "shipped example", 250, 2)


def proposition(path: Path) -> Iterator[Task]:
    """Proposition 1's numbers and the commutators on the trained stacks."""

    def run(subject: Callable[[], Subject]) -> dict[str, Any]:
        stack, x = subject().problem.stack, subject().problem.x
        blocks = jax.tree.map(np.asarray, analysis.measure_blocks(stack, x))
        sizes = jax.tree.map(np.asarray, analysis.commutators(stack, x[:256]))
        upper = np.triu_indices(stack.depth, 1)
        width = blocks.singular_values.shape[1]
        signals = analysis.signals(stack, x[:SEARCH_ROWS])
        return {
            "trace": float(np.median(blocks.trace)),
            "twice_jacobian_trace": float(np.median(2 * blocks.jacobian_trace)),
            "minus_jacobian_squared": float(np.median(-blocks.jacobian_squared)),
            "negative_traces": signals["negative_traces"],
            "paired": signals["paired"],
            "activation": float(blocks.activation.mean()),
            "isometry": float(np.median(blocks.isometry) / width**0.5),
            "commutator_over_product": float(np.median((sizes.size / sizes.product)[upper])),
            "commutator_share": float(np.median((sizes.size / sizes.change)[upper])),
        }

    for name, subject in (
        *((recipe, partial(trained, recipe)) for recipe in RECIPES),
        ("given puzzle", partial(given, path)),
    ):
        yield {"stack": name}, partial(run, subject)


def appendix(path: Path) -> Iterator[Task]:
    """Appendix A's recipe on the given table, by target and batch, two seeds each: which MSE, and when signals appear."""

    def run(target: str, batch: int) -> dict[str, Any]:
        puzzle, recipe = load(path), training.Recipe(batch=batch)
        wanted = getattr(puzzle, target)
        few = jnp.asarray(puzzle.x[:SEARCH_ROWS])
        losses, ends, curves = [], [], []
        for epoch in training.epochs(recipe, puzzle.x, wanted, APPENDIX_SEEDS):
            stacks = [epoch.stack(i) for i in range(len(APPENDIX_SEEDS))]
            losses.append(np.asarray(epoch.loss, np.float64))
            if epoch.number > recipe.epochs - LAST_EPOCHS:
                ends.append([float(mse_of(stack, puzzle.x, wanted)) for stack in stacks])
            if epoch.number in SHOWN_EPOCHS:
                curves += [
                    {"epoch": epoch.number, "seed": seed, "loss": float(epoch.loss[i]), **analysis.signals(stacks[i], few)}
                    for i, seed in enumerate(APPENDIX_SEEDS)
                ]
        by_epoch, last = np.array(losses), np.array(ends)
        return {
            "mse": last[-1].tolist(),
            "mse_least": last.min(axis=0).tolist(),
            "mse_median": np.median(last, axis=0).tolist(),
            "loss": by_epoch[-1].tolist(),
            "loss_least": by_epoch.min(axis=0).tolist(),
            "loss_least_epoch": (by_epoch.argmin(axis=0) + 1).tolist(),
            "curves": curves,
        }

    for batch in (64, 128, 256):
        for target in ("true", "pred"):
            yield {"target": target, "batch": batch}, partial(run, target, batch)


EXPERIMENTS = {
    "proposition": proposition,
    "rows": rows,
    "league": league,
    "minima": minima,
    "least_squares": least_squares,
    "appendix": appendix,
}


def main() -> int:
    """Exit status 0, or 2 for bad input."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("puzzle", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(EXPERIMENTS), default=tuple(EXPERIMENTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="records, added one by one; those that it holds are kept")
    args = parser.parse_args()
    if args.json is not None:
        ensure_writable(args.json)
    device.configure()
    records = json.loads(args.json.read_text())["rows"] if args.json is not None and args.json.exists() else []
    for name in args.only:
        for key, make in EXPERIMENTS[name](args.puzzle):
            key = {"experiment": name, **key}
            record = next((record for record in records if key.items() <= record.items()), None)
            if record is None:
                start = time.perf_counter()
                record = key | make()
                record["seconds"] = round(time.perf_counter() - start, 2)
                records.append(record)
                if args.json is not None:
                    text = json.dumps({"rows": records}, indent=1)
                    atomic_write(args.json, lambda path, text=text: path.write_text(text))
            shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items() if k != "curves")
            print("  ".join(shown), flush=True)
    return 0


if __name__ == "__main__":
    console.run_command(main)
