from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import reference
import scipy
from peelable import D, H, L, planted

from dropjax.core.solution import Pairing
from dropjax.ordering import peeling
from dropjax.ordering.peeling import Peeled, peel, seen_through, start_peeling
from dropjax.pairing.certainty import KNOWN, Judged, log_odds
from dropjax.runtime import mesh
from dropjax.search import peeling_rung
from dropjax.search.order_rungs import ByFlips
from dropjax.search.pair_rungs import Settled
from dropjax.search.peeling_rung import ByPeeling
from dropjax.search.problem import Table
from dropjax.search.rungs import Ground, climb


def peeled(stack, pairs, certain, x, pred):
    at = start_peeling(pairs)
    while at.placed < stack.depth:
        at = peel(stack, at, certain, x, pred)
    return at


@pytest.mark.parametrize("known", ["all", "some", pytest.param("none", marks=pytest.mark.slow)])
def test_a_stack_is_peeled_with_the_pairs_that_are_known(known):
    stack, truth, x, pred = planted(1)
    certain = np.full(L, -1)
    sure = truth[{"all": slice(None), "some": slice(None, None, 2), "none": slice(0)}[known]]
    certain[sure[:, 0]] = sure[:, 1]
    wrong = np.stack([np.arange(L), np.roll(np.arange(L), 1)], axis=1)
    found = peeled(stack, wrong, certain, x, pred)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.placed == L
    assert (found.lift > 0).all()
    assert not found.knows_nothing


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_table_of_another_network_knows_nothing(seed):
    stack, truth, x, _ = planted(seed)
    _, _, _, other = planted(seed + 100)
    at = start_peeling(truth)
    for certain in (np.full(L, -1), truth[np.argsort(truth[:, 0]), 1]):
        assert peel(stack, at, certain, x, other).knows_nothing


def test_outputs_that_overflow_end_in_an_arrangement():
    stack, truth, x, pred = planted(0)
    found = peeled(stack, truth, np.full(L, -1), 1e20 * x, pred)
    assert sorted(found.arrangement[:, 0]) == sorted(found.arrangement[:, 1]) == list(range(L))


def test_blocks_are_seen_through_their_partners_and_narrow_ones_whole():
    stack, truth, *_ = planted(0)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(D, 3)))[0].astype(np.float32)
    found = mesh.fetch(seen_through(stack, truth, basis))
    np.testing.assert_allclose(found, [np.asarray(stack.w_out[j]).T @ basis for j in truth[:, 1]], atol=1e-5)
    whole = mesh.fetch(seen_through(stack, truth, np.ones((D, H), np.float32)))
    np.testing.assert_array_equal(whole, np.tile(np.eye(H), (L, 1, 1)))


def test_peeling_is_astray_where_most_blocks_help_no_more_than_chance():
    none = np.zeros(32)
    assert not Peeled(np.zeros((32, 2), np.int32), 4, none).is_astray, "too early to say"
    assert Peeled(np.zeros((32, 2), np.int32), 8, none).is_astray
    assert not Peeled(np.zeros((32, 2), np.int32), 20, none).is_astray, "behind the first half it is too late"
    assert not Peeled(np.zeros((32, 2), np.int32), 8, none + 50).is_astray


@pytest.mark.slow
def test_a_table_of_one_row_knows_nothing():
    stack, truth, x, pred = planted(0)
    assert peel(stack, start_peeling(truth), np.full(L, -1), x[:1], pred[:1]).knows_nothing


def test_fewer_rows_are_looked_at_where_memory_is_scarce():
    stack, *_ = planted(0)
    assert peeling.rows_to_peel(stack) == peeling.MOST_ROWS
    assert peeling.rows_to_peel(stack, memory=16 * L * H * 50) == 50


# The rung

SETTLED = (partial(Settled, ordering=ByFlips),)


def ground_of(seed, depth=8, other=False):
    """The ground of a stack whose weights show no pairs, its truth, and a wrong start."""
    stack, truth, x, pred = planted(seed, rows=1500, depth=depth)
    if other:
        _, _, _, pred = planted(seed + 100, rows=1500, depth=depth)
    rng = np.random.default_rng(seed)
    start = reference.random_arrangement(rng, depth)
    pairing = Pairing("drawn", rng.normal(size=(depth, depth)), start[np.argsort(start[:, 0]), 1], True)
    return Ground.of(mesh.put(stack), Table(x, pred), pairing, seed), truth, start


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_rung_finds_pairs_and_order_that_no_weight_shows(seed):
    ground, truth, start = ground_of(seed)
    assert (ground.certain == -1).all()
    found = climb(ByPeeling(ground, SETTLED, pairs_open=True), ground.judged(start), ground.context)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.mse <= ground.exact


def test_the_rung_ends_where_the_table_knows_nothing_and_where_nothing_is_left_to_find():
    ground, _, start = ground_of(0, other=True)
    best = ground.judged(start)
    found = climb(ByPeeling(ground, SETTLED, pairs_open=True), best, ground.context)
    np.testing.assert_array_equal(found.arrangement, start)
    assert found.evaluations == 0
    ground, truth, _ = ground_of(0)
    rung = ByPeeling(ground, SETTLED, pairs_open=True)
    assert rung.ended(rung.start(ground.judged(truth)))


def test_each_draw_peels_off_other_rows():
    ground, _, _ = ground_of(0)
    draws = [ByPeeling(ground, SETTLED, pairs_open=True, draw=draw) for draw in (0, 1, 0)]
    rows = [draw.rows() for draw in draws]
    x = ground.table.x
    for drawn in rows:
        np.testing.assert_array_equal(np.unique(drawn.x, axis=0), np.unique(x, axis=0))
    assert (rows[0].x != rows[1].x).any()
    np.testing.assert_array_equal(rows[0].x, rows[2].x)
    np.testing.assert_array_equal(rows[0].pred, rows[2].pred)


def test_each_rung_goes_on_from_the_best_that_those_before_it_found(monkeypatch):
    ground, truth, start = ground_of(0)
    turned, begun = truth[::-1].copy(), []

    def found(rung, best, context):
        begun.append(best.arrangement)
        return ground.judged(rung)

    monkeypatch.setattr(peeling_rung, "peel", lambda stack, at, *_: Peeled(start, len(start), np.full(len(start), 99.0)))
    monkeypatch.setattr(peeling_rung, "climb", found)
    rung = ByPeeling(ground, (lambda _: turned, lambda _: truth), pairs_open=True)
    assert climb(rung, ground.judged(start), ground.context).mse <= ground.exact
    better = min(start, turned, key=lambda arrangement: ground.judged(arrangement).mse)
    np.testing.assert_array_equal(begun, [start, better])


def test_pairs_that_are_clear_of_chance_are_certain():
    ground, truth, _ = ground_of(3)
    score = np.random.default_rng(0).normal(size=(8, 8)) / 100
    score[truth[:, 0], truth[:, 1]] += 1
    partner = truth[np.argsort(truth[:, 0]), 1]
    table = Table(*map(np.asarray, ground.few))
    np.testing.assert_array_equal(Ground.of(ground.stack, table, Pairing("drawn", score, partner, True), 0).certain, partner)


def test_what_weights_say_of_pairs_counts_by_how_far_the_chosen_ones_stand_out():
    rng = np.random.default_rng(0)
    partner = rng.permutation(30)
    score = rng.normal(size=(30, 30))
    right = np.zeros((30, 30))
    right[np.arange(30), partner] = 1
    found = log_odds(Pairing("drawn", score + 8 * right, partner, True))
    assert found[right == 1].mean() == pytest.approx(8 * 8, rel=0.15)
    assert abs(found[right == 0].mean()) < 1
    chosen = scipy.optimize.linear_sum_assignment(score, maximize=True)[1]
    assert (log_odds(Pairing("drawn", score, chosen, True)) == 0).all(), "no signal"
    weaker = Pairing("drawn", score + 2 * right, partner, True)
    assert (log_odds(weaker) == 0).all(), "no further out than the largest of the wrong ones"
    judged = Judged(**vars(weaker), strength=KNOWN + 0.1)
    assert log_odds(judged)[right == 1].mean() == pytest.approx(2 * 2, rel=0.3), "but further than of shuffled halves"
    assert (log_odds(replace(judged, strength=KNOWN - 0.1)) == 0).all()


@pytest.mark.slow
def test_a_block_that_was_passed_over_comes_back_from_further_than_the_last_places(monkeypatch):
    stack, truth, x, pred = planted(4, depth=8, rows=2000)
    certain = truth[np.argsort(truth[:, 0]), 1]
    passed_over = np.concatenate([np.delete(truth, 1, axis=0), truth[1:2]]).astype(np.int32)
    at = Peeled(passed_over, 6, np.zeros(8))
    monkeypatch.setattr(peeling, "PLACES", 2)
    monkeypatch.setattr(peeling, "straighten_prefix", lambda stack, prefix, start, outlook: prefix)
    found = peel(stack, at, certain, x, pred)
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.placed == 8
    monkeypatch.setattr(peeling, "WINDOW", 0)
    assert (peel(stack, at, certain, x, pred).arrangement != truth).any(), "without looking further back it does not"
