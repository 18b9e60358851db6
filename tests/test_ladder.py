from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dropjax.core.protocols import Context, StopReason
from dropjax.core.solution import Pairing
from dropjax.moves.exact import score_arrangements
from dropjax.runtime import mesh
from dropjax.search import ladder, scan_rungs
from dropjax.search.ladder import Warmed, evidence_of_nothing, rungs
from dropjax.search.order_rungs import Annealing, ByFlips
from dropjax.search.pair_rungs import FromEach, Paired
from dropjax.search.peeling_rung import ByPeeling
from dropjax.search.problem import Table
from dropjax.search.rungs import SOME_ROWS, Ground, climb
from dropjax.search.scan_rungs import Exhausted, Scanned, exhaustible

L, D, H = 7, 5, 9


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Small stacks need few rounds."""
    monkeypatch.setattr(ladder, "ROUNDS", (300, 100))


def dropped(seed, wrong=0, rows=1200, shuffled=False, decimals=None, stop=None, depth=L):
    """The ground of a small stack, its truth, a start in random order with some pairs wrong, and the looks at the clock."""
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, depth, D, H, 1, size=0.2)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    truth = reference.random_arrangement(rng, depth)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    if shuffled:
        pred = rng.permutation(pred)
    if decimals is not None:
        pred = np.round(pred.astype(np.float64), decimals).astype(np.float32)
    pairs = truth[np.argsort(truth[:, 0])]
    pairs[:wrong, 1] = np.roll(pairs[:wrong, 1], 1)
    score = rng.normal(size=(depth, depth)) / 10
    score[np.arange(depth), pairs[:, 1]] += 1
    pairing = Pairing("drawn", score, pairs[:, 1], True)
    looks = []

    def asked() -> StopReason | None:
        looks.append(1)
        return stop

    noise = None if decimals is None else 10.0**-decimals / 12**0.5
    ground = Ground.of(mesh.put(stack), Table(x, pred), pairing, seed, Context(agreed_stop=asked), noise)
    return ground, truth, pairs[rng.permutation(depth)], looks


def all_rungs(ground, starts):
    return [FromEach(ground, starts, ByFlips), Paired(ground, ByFlips), Warmed(ground, ByFlips), Scanned(ground)]


@pytest.mark.parametrize("seed", range(3))
def test_a_random_order_with_wrong_pairs_is_recovered(seed):
    ground, truth, start, looks = dropped(seed, wrong=2)
    from_each, paired, warmed, scanned = all_rungs(ground, [start, start[::-1].copy()])
    found = ground.judged(start)
    for rung in (from_each, paired, warmed, paired, scanned):
        found = climb(rung, found, ground.context)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.mse < 1e-9
    assert looks, "the clock is looked at"


def test_a_rounded_pred_is_reached_as_far_as_it_can_be():
    ground, truth, start, looks = dropped(1, decimals=3)
    found = climb(FromEach(ground, [start, start[::-1].copy()], ByFlips), ground.judged(start), ground.context)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert not ground.unfinished(found)
    asked = len(looks)
    rungs_left = [ByFlips(ground), *all_rungs(ground, [start])[1:]]
    for rung in rungs_left:
        again = climb(rung, found, ground.context)
        assert (again.evaluations, again.moves) == (0, 0)
    assert len(looks) == asked + len(rungs_left)  # each has ended before its first look


def test_the_scan_alone_mends_one_move_of_each_kind():
    ground, truth, _, _ = dropped(3)
    for change in ([1, 0, 2, 3, 4, 5, 6], [4, 1, 2, 3, 0, 5, 6], [1, 2, 3, 4, 5, 0, 6]):
        found = climb(Scanned(ground), ground.judged(truth[change]), ground.context)
        np.testing.assert_array_equal(found.arrangement, truth)
        assert found.moves >= 1
    swapped = truth.copy()
    swapped[[2, 5], 1] = swapped[[5, 2], 1]
    found = climb(Scanned(ground), ground.judged(swapped), ground.context)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.moves == 1
    assert found.evaluations == scan_rungs.PORTION + scan_rungs.BEST_MOVES


def test_of_few_blocks_every_arrangement_is_tried():
    ground, truth, start, _ = dropped(8, wrong=2, depth=3)
    found = climb(Exhausted(ground), ground.judged(start), ground.context)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.evaluations == 36
    assert [exhaustible(depth) for depth in (1, 5, 6)] == [True, True, False]
    assert [named.name for named in rungs(ground, [start])][-1] == "every arrangement"


@pytest.mark.parametrize("depth", [5, 6, 80])
def test_the_outputs_are_looked_at_for_evidence_once_all_starts_have_been_tried(depth):
    ground, _, start, _ = dropped(8, depth=6)
    starts = [start + k for k in range(7)]
    if depth != 6:
        ground = replace(ground, stack=replace(ground.stack, w_in=np.zeros((depth, 1, 1))))
    tried, told = [], []
    for name, rung, tells in rungs(ground, starts):
        if isinstance(rung, FromEach) and (name == "places") == (depth > 64):
            tried += rung.starts
        told += [len(tried)] if tells else []
    assert told == [len(starts)]


def test_doubtful_pairs_are_peeled_off_two_draws_of_rows():
    ground, _, start, _ = dropped(8, depth=6)
    peelings = [named.rung for named in rungs(ground, [start]) if isinstance(named.rung, ByPeeling)]
    assert [(rung.pairs_open, rung.draw) for rung in peelings] == [(False, 0), (True, 0), (True, 1)]


def test_evaluations_are_candidates_scored_exactly(monkeypatch):
    """Counted where they are scored: by every function that runs candidates."""
    ground, _, start, _ = dropped(0, wrong=2)
    scored = []

    def counting(function, many):
        def call(stack, first, second, *rest, **named):
            scored.append(len(many(first, second)))
            return function(stack, first, second, *rest, **named)

        return call

    by_arrangement = counting(score_arrangements, lambda arrangements, _: arrangements)
    for module in ("rungs", "order_rungs", "scan_rungs"):
        monkeypatch.setattr(f"dropjax.search.{module}.score_arrangements", by_arrangement)
    monkeypatch.setattr(scan_rungs, "score_moves", counting(scan_rungs.score_moves, lambda _, moves: moves))
    best = ground.judged(start)
    for rung in (ByFlips(ground), Paired(ground, ByFlips), Scanned(ground)):
        scored.clear()
        best = climb(rung, best, ground.context)
        assert best.evaluations == sum(scored), rung


def test_the_truth_is_left_alone():
    ground, truth, _, _ = dropped(4)
    at = ground.judged(truth)
    for rung in all_rungs(ground, [truth]):
        np.testing.assert_array_equal(climb(rung, at, ground.context).arrangement, truth)


def test_what_shuffled_pred_teaches_does_not_carry_over():
    ground, truth, start, _ = dropped(5)
    assert evidence_of_nothing(ground, truth) is None
    ground, _, start, _ = dropped(5, shuffled=True)
    found = climb(FromEach(ground, [start], ByFlips), ground.judged(start), ground.context)
    assert "688 rows" in (evidence_of_nothing(ground, found.arrangement) or "")


@pytest.mark.parametrize(("times", "follows"), [(-9, False), (0.8, False), (4, False), (8, True)])
def test_outputs_follow_pred_where_they_correlate_by_six_times_what_chance_gives(times, follows):
    ground, truth, _, _ = dropped(5)
    x, pred = ground.many
    unseen, rng = np.asarray(pred, np.float64)[SOME_ROWS:, 0], np.random.default_rng(0)
    along = (unseen - unseen.mean()) / unseen.std()
    across = rng.normal(size=len(along))
    across -= across.mean() + along * np.mean(along * across)
    share = times / len(along) ** 0.5
    wanted = share * along + (1 - share**2) ** 0.5 * across / across.std()
    ground = replace(ground, many=(x, jnp.concatenate([pred[:SOME_ROWS], wanted[:, None].astype(np.float32)])))
    assert (evidence_of_nothing(ground, truth) is None) == follows


def test_a_stop_ends_every_rung_at_once():
    ground, _, start, looks = dropped(6, stop=StopReason.TIME_LIMIT)
    at = ground.judged(start)
    for rung in all_rungs(ground, [start[::-1].copy()]):
        found = climb(rung, at, ground.context)
        assert (found.evaluations, found.moves) == (0, 0)
        np.testing.assert_array_equal(found.arrangement, start)
    assert len(looks) == 4


def test_annealing_alone_forms_an_order():
    ground, truth, start, _ = dropped(7)
    found = climb(Annealing(ground, ground.few, 1e-2, 1e-6, 300, seed=1), ground.judged(start), ground.context)
    np.testing.assert_array_equal(found.arrangement, truth)
