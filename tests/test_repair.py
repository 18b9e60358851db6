import inspect
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from dropjax.core.protocols import Context, StopReason
from dropjax.moves.exact import score_arrangements, score_moves, squared_error
from dropjax.ordering import bubble, guided, seeding
from dropjax.ordering.bubble import Rounds, bubble_repair, bubble_rounds
from dropjax.ordering.guided import CHUNK, Proposals, _apply_best, guided_repair, guided_rounds, start_guided
from dropjax.pairing.portfolio import pair
from dropjax.runtime.device import scored_together


def planted(seed, shape=(7, 4, 9, 1), rows=40, size=0.3):
    """A stack, a shuffled arrangement of its blocks, the right one, and a table it made."""
    rng = np.random.default_rng(seed)
    stack, right = reference.random_stack(rng, *shape, size=size), reference.random_arrangement(rng, shape[0])
    x = rng.normal(size=(rows, shape[1])).astype(np.float32)
    pred = reference.outputs(stack, right, x).astype(np.float32)
    return stack, right[rng.permutation(shape[0])], right, x, pred


def sweeps(stack, arrangement, x, pred):
    """The paper's bubble repair, one swap after another, and the places of the swaps of each round."""
    arrangement, best, rounds = np.array(arrangement), reference.mse(stack, arrangement, x, pred), []
    while not rounds or rounds[-1]:
        rounds.append([])
        for i in range(len(arrangement) - 1):
            candidate = reference.after(arrangement, (0, i, i + 1))
            mse = reference.mse(stack, candidate, x, pred)
            if mse < best - 1e-12:  # float64 tells apart what float32 calls a tie
                arrangement, best = candidate, mse
                rounds[-1].append(i)
    return arrangement, rounds


def scored(swaps, last, window):
    """Candidates of one round: up to `window` at a time, and those behind a swap that is kept once more."""
    position, count = 0, 0
    while position < last:
        batch = range(position, min(position + window, last))
        count += len(batch)
        position = next((i + 1 for i in batch if i in swaps), batch.stop)
    return count


@pytest.mark.parametrize("window", [1, 3, 6])
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_a_batched_sweep_decides_as_one_swap_after_another(window, seed):
    stack, start, _, x, pred = planted(seed)
    expected, rounds = sweeps(stack, start, x, pred)
    found = bubble_rounds(stack, start, x, pred, most=30, window=window)
    assert found.done
    assert np.asarray(found.swaps)[: int(found.rounds)].tolist() == list(map(len, rounds))
    np.testing.assert_array_equal(found.arrangement, expected)
    np.testing.assert_array_equal(found.arrangements[int(found.rounds) - 1], expected)
    assert int(found.evaluations) == sum(scored(swaps, len(start) - 1, window) for swaps in rounds)


def whole_numbers(stack):
    """The stack with small whole numbers for weights: every sum is exact, in whatever order it is taken."""
    return jax.tree.map(lambda a: jnp.asarray(np.round(2 * np.asarray(a)), jnp.float32), stack)


@pytest.mark.parametrize("window", [1, 4])
def test_a_swap_that_changes_nothing_is_not_kept(window):
    rng = np.random.default_rng(0)
    stack = whole_numbers(reference.random_stack(rng, 5, 3, 2, 1))
    again = np.array([2, 2, 2, 2, 2])  # one block five times: every exchange of neighbours is a tie
    x = rng.integers(-2, 3, size=(6, 3)).astype(np.float32)
    arrangement = np.stack([again, again], axis=1).astype(np.int32)
    pred = reference.outputs(stack, arrangement, x).astype(np.float32)
    for target in (pred, pred + 1):
        found = bubble_rounds(stack, arrangement, x, target, most=3, window=window)
        assert found.done
        assert int(found.rounds) == 1 and int(found.swaps[0]) == 0
        assert float(found.mse) == np.mean((pred - target) ** 2)


@pytest.mark.parametrize("window", [1, 3])
@settings(max_examples=4, deadline=None)
@given(reference.seeds)
def test_repair_in_little_memory_decides_the_same(window, seed):
    stack, start, _, x, pred = planted(seed)
    whole = bubble_rounds(stack, start, x, pred, most=30, window=window)
    for memory in (1, 7 * 8 * window * (4 + 9)):
        parts = bubble_rounds(stack, start, x, pred, most=30, window=window, memory=memory)
        np.testing.assert_array_equal(parts.arrangements, whole.arrangements)
        np.testing.assert_array_equal(parts.swaps, whole.swaps)
        assert int(parts.evaluations) == int(whole.evaluations)
        assert float(parts.mse) == pytest.approx(float(whole.mse), rel=1e-4, abs=1e-9)
    repaired = bubble_repair(stack, start, x, pred, context=Context(memory=1))
    np.testing.assert_array_equal(repaired.arrangement, whole.arrangement)


def test_repair_keeps_to_its_memory():
    stack, start, _, x, pred = planted(0, (5, 4, 60, 1), rows=8000)

    def held(memory):
        lowered = bubble_rounds.lower(stack, start, x, pred, most=2, window=4, memory=memory)
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    table = 4 * len(x) * (2 * 4 + 1 + 1)  # inputs, a state, pred and weights, in chunks
    assert held(1 << 30) > 4 * 4 * len(x) * 60  # hidden units of all candidates
    for memory in (1 << 20, 1 << 17):
        assert held(memory) < memory + 2 * table


def test_repair_goes_on_where_one_call_ends():
    stack, start, _, x, pred = planted(3)
    whole = bubble_repair(stack, start, x, pred, most=30)
    parts = bubble_repair(stack, start, x, pred, most=1)
    assert [swaps for swaps, _ in whole.history] == [swaps for swaps, _ in parts.history]
    np.testing.assert_array_equal(whole.arrangement, parts.arrangement)
    at_once = bubble_rounds(stack, start, x, pred, most=30, window=scored_together(stack.depth - 1))
    assert whole.evaluations == parts.evaluations == int(at_once.evaluations)
    assert whole.swaps == sum(swaps for swaps, _ in whole.history) > 0


def test_repair_stops_when_told():
    stack, start, _, x, pred = planted(3)
    stopped = bubble_repair(stack, start, x, pred, Context(agreed_stop=lambda: StopReason.INTERRUPTED))
    np.testing.assert_array_equal(stopped.arrangement, start)
    assert stopped.history == []
    guided = guided_repair(stack, start, x, pred, 0.0, Context(agreed_stop=lambda: StopReason.INTERRUPTED))
    np.testing.assert_array_equal(guided.arrangement, start)


def chosen_by_brute_force(fall):
    """Largest total of non-overlapping intervals, by trying every last one."""
    depth = len(fall)
    best = [0.0] * (depth + 1)
    for j in range(depth):
        best[j + 1] = max([best[j]] + [best[i] + fall[i, j] for i in range(j)])
    return best[-1]


@settings(max_examples=25, deadline=None)
@given(reference.seeds)
def test_the_proposals_applied_are_the_best_that_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    depth = 7
    fall = np.triu(rng.normal(size=(depth, depth)), 1).astype(np.float32)
    kind = rng.integers(0, 3, size=(depth, depth)).astype(np.int32)
    start = np.stack([np.arange(depth), np.arange(depth)], axis=1).astype(np.int32)
    proposals = Proposals(jnp.float32(1), jnp.asarray(fall), jnp.asarray(kind))
    result, count = jax.jit(_apply_best)(jnp.asarray(start), proposals, jnp.float32(0))
    # Positions that a move touches form the intervals; read them back from the result.
    order, i, total, moves = np.asarray(result)[:, 0], 0, 0.0, 0
    while i < depth:
        ends = [j for j in range(i, depth) if set(order[i : j + 1]) == set(range(i, j + 1))]
        if ends[0] > i:
            total, moves = total + fall[i, ends[0]], moves + 1
            move = [(1, i, ends[0]), (1, ends[0], i), (0, i, ends[0])][kind[i, ends[0]]]
            np.testing.assert_array_equal(order[i : ends[0] + 1], reference.after(start, move)[i : ends[0] + 1, 0])
        i = ends[0] + 1
    assert moves == count
    assert total == pytest.approx(chosen_by_brute_force(np.maximum(fall, 0)), rel=1e-5)


def test_no_proposals_change_nothing():
    start = jnp.asarray(reference.random_arrangement(np.random.default_rng(0), 5))
    nothing = Proposals(jnp.float32(1), -jnp.ones((5, 5)), jnp.zeros((5, 5), jnp.int32))
    result, count = _apply_best(start, nothing, jnp.float32(0))
    assert count == 0
    np.testing.assert_array_equal(result, start)


@pytest.mark.parametrize("shape", [(7, 4, 9, 1), (5, 6, 4, 2)])
def test_guided_repair_never_ends_above_its_start_and_mostly_at_the_answer(shape):
    solved = 0
    for seed in range(10):
        stack, start, right, x, pred = planted(seed, shape, rows=60, size=0.1)
        found = guided_repair(stack, start, x, pred, tolerance=1e-10)
        mse = reference.mse(stack, found.arrangement, x, pred)
        assert bool(found.finished)
        assert mse <= reference.mse(stack, start, x, pred)
        assert mse == pytest.approx(float(found.proposals.mse), rel=1e-3, abs=1e-9)
        solved += bool((np.asarray(found.arrangement) == right).all())
    assert solved >= 5  # from random orders: some end in local minima


def test_guided_repair_takes_more_rows_until_it_is_exact_on_all():
    stack, start, right, x, pred = planted(1, (7, 4, 9, 1), rows=700, size=0.1)
    found = guided_repair(stack, start, x, pred, tolerance=0.0)
    assert found.rows(700) == 700
    few = guided_repair(stack, start, x, pred, tolerance=1e-9)
    assert few.rows(700) == CHUNK
    for result in (found, few):
        np.testing.assert_array_equal(result.arrangement, right)


def test_guided_repair_in_parts_is_the_same_as_at_once(monkeypatch):
    stack, start, _, x, pred = planted(2, rows=300)
    whole = guided_repair(stack, start, x, pred, tolerance=1e-10)
    monkeypatch.setattr(guided, "PART", 1)
    calls = []
    keep = lambda function, like: (calls.append(like), function())[1]  # noqa: E731
    parts = guided_repair(stack, start, x, pred, tolerance=1e-10, context=Context(keep=keep))
    assert len(calls) == int(parts.rounds)
    np.testing.assert_array_equal(whole.arrangement, parts.arrangement)
    assert int(whole.rounds) == int(parts.rounds)


def test_scores_of_reduced_precision_propose_and_decide_nothing(monkeypatch):
    def as_an_accelerator_would(a, b, precision="highest"):
        if precision != "highest":
            a, b = (half.astype(jnp.bfloat16).astype(jnp.float32) for half in (a, b))
        return jnp.einsum("...n,mn->...m", a, b, precision=precision)

    monkeypatch.setattr("dropjax.core.stack.product", as_an_accelerator_would)
    stack, start, right, x, pred = planted(1, (7, 4, 9, 1), rows=700, size=0.1)
    assert score_arrangements(replace(stack, precision="default"), right[None], x, pred)[0] > 1e-6
    found = guided_repair(stack, start, x, pred, tolerance=0.0, screen="default")
    np.testing.assert_array_equal(found.arrangement, right)
    assert float(found.proposals.mse) < 1e-12
    lowered = jax.jit(partial(guided_rounds, screen="default")).lower(stack, start_guided(start), x, pred, 0.0, 1)
    assert "precision = [DEFAULT, DEFAULT]" in lowered.as_text()
    assert "precision = [HIGHEST, HIGHEST]" in lowered.as_text()


@pytest.mark.slow
@pytest.mark.usefixtures("real_folder")
def test_the_papers_table_3(real_puzzle):
    stack = real_puzzle.stack()
    pairs = np.stack([np.arange(48), pair(stack.w_in, stack.w_out).partner], axis=1).astype(np.int32)
    x, pred = real_puzzle.x[:2000], real_puzzle.pred[:2000]
    start = seeding.seed_order("w_out_norm", "ascending", stack, pairs, x)
    repaired = bubble_repair(stack, start, x, pred)
    assert [swaps for swaps, _ in repaired.history] == [30, 16, 12, 9, 4, 1, 0]
    nothing = np.array([[0, 47, 47]], np.int32)
    mse = [float(score_moves(stack, order, nothing, real_puzzle.x, real_puzzle.pred)[0]) for _, order in repaired.history]
    assert [round(value, 6) for value in mse[:6]] == [0.005936, 0.003397, 0.001405, 0.000568, 0.000223, 0.0]


def test_bubble_repair_ends_where_two_programs_round_one_mse_differently(monkeypatch):
    """Blocks that do nothing are exchanged without effect; a start whose MSE is summed too high asks for it each time."""

    def higher(stack, arrangement, start, *rest):
        return jnp.where(start == 0, 1.00001, 1) * squared_error(stack, arrangement, start, *rest)

    monkeypatch.setattr(bubble, "squared_error", higher)
    compiled = jax.jit(inspect.unwrap(bubble_rounds), static_argnames=("most", "window", "memory"))
    monkeypatch.setattr(bubble, "bubble_rounds", compiled)
    rng = np.random.default_rng(2)
    stack = reference.random_stack(rng, 4, 6, 5, 1)
    nothing = replace(stack, w_out=0 * stack.w_out, b_out=0 * stack.b_out)
    x = rng.normal(size=(30, 6)).astype(np.float32)
    repaired = bubble_repair(nothing, reference.random_arrangement(rng, 4), x, x[:, :1], most=1, limit=20)
    assert len(repaired.history) < 20
    assert repaired.history[-1][0] == 0


def test_bubble_repair_ends_after_its_limit():
    stack, start, _, x, pred = planted(2)
    whole = bubble_repair(stack, start, x, pred)
    assert len(whole.history) > 2
    cut = bubble_repair(stack, start, x, pred, limit=2)
    assert [swaps for swaps, _ in cut.history] == [swaps for swaps, _ in whole.history][:2]


@pytest.mark.parametrize(
    ("rounds", "swaps", "done"),
    [(0, [0, 0, 0], False), (1, [0, 0, 0], True), (1, [3, 0, 0], False), (2, [3, 0, 1], True), (3, [3, 0, 1], False)],
)
def test_repair_is_done_after_a_round_that_keeps_nothing(rounds, swaps, done):
    nowhere = np.zeros((5, 2), np.int32)
    at = Rounds(nowhere, np.float32(0), np.int32(rounds), np.array(swaps, np.int32), np.stack([nowhere] * 3), np.int32(0))
    assert at.done == done
