import jax.numpy as jnp
import numpy as np
import pytest
import reference

from dropjax.core.solution import Pairing
from dropjax.search import ladder
from dropjax.search.ladder import Ladder

L, D, H = 7, 5, 9


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Small stacks need few rounds."""
    monkeypatch.setattr(ladder, "ROUNDS", (300, 100))


def dropped(seed, wrong=0, rows=1200, shuffled=False, decimals=None):
    """A ladder for a small stack, its truth, and a start in random order with some pairs wrong."""
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, L, D, H, 1, size=0.2)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    truth = reference.random_arrangement(rng, L)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    if shuffled:
        pred = rng.permutation(pred)
    if decimals is not None:
        pred = np.round(pred.astype(np.float64), decimals).astype(np.float32)
    pairs = truth[np.argsort(truth[:, 0])]
    pairs[:wrong, 1] = np.roll(pairs[:wrong, 1], 1)
    score = rng.normal(size=(L, L)) / 10
    score[np.arange(L), pairs[:, 1]] += 1
    pairing = Pairing("drawn", score, pairs[:, 1], True)
    calls = []
    noise = None if decimals is None else 10.0**-decimals / 12**0.5
    climb = Ladder(stack, x, pred, pairing, lambda: calls.append(1), seed, pred_noise=noise)
    return climb, truth, pairs[rng.permutation(L)], calls


@pytest.mark.parametrize("seed", range(3))
def test_a_random_order_with_wrong_pairs_is_recovered(seed):
    climb, truth, start, calls = dropped(seed, wrong=2)
    found = climb.best_of([start, start[::-1].copy()])
    found = climb.scanned(climb.paired(climb.warmed(climb.paired(found))))
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.mse < 1e-9
    assert calls, "the clock is looked at"


def test_a_rounded_pred_is_reached_as_far_as_it_can_be():
    climb, truth, start, calls = dropped(1, decimals=3)
    found = climb.best_of([start, start[::-1].copy()])
    np.testing.assert_array_equal(found.arrangement, truth)
    assert not climb.unfinished(found)
    asked = len(calls)
    for rung in (climb.ordered, climb.paired, climb.warmed, climb.scanned):
        assert rung(found).rounds == 0
    assert len(calls) == asked


def test_the_scan_alone_mends_one_move_of_each_kind():
    climb, truth, _, _ = dropped(3)
    for change in ([1, 0, 2, 3, 4, 5, 6], [4, 1, 2, 3, 0, 5, 6], [1, 2, 3, 4, 5, 0, 6]):
        found = climb.scanned(climb.judged(truth[change]))
        np.testing.assert_array_equal(found.arrangement, truth)
        assert found.moves >= 1
    swapped = truth.copy()
    swapped[[2, 5], 1] = swapped[[5, 2], 1]
    np.testing.assert_array_equal(climb.scanned(climb.judged(swapped)).arrangement, truth)


def test_of_few_blocks_every_arrangement_is_tried(monkeypatch):
    monkeypatch.setattr("test_ladder.L", 3)
    climb, truth, start, _ = dropped(8, wrong=2)
    found = climb.exhausted(climb.judged(start))
    np.testing.assert_array_equal(found.arrangement, truth)
    assert found.rounds == 36
    assert climb.exhaustible
    monkeypatch.setattr(ladder, "EXHAUSTIBLE", 35)
    assert not climb.exhaustible


def test_the_truth_is_left_alone():
    climb, truth, _, _ = dropped(4)
    at = climb.judged(truth)
    for rung in (climb.ordered, climb.paired, climb.warmed, climb.scanned):
        np.testing.assert_array_equal(rung(at).arrangement, truth)


def test_what_shuffled_pred_teaches_does_not_carry_over():
    climb, truth, start, _ = dropped(5)
    assert climb.evidence_of_nothing(truth) is None
    climb, _, start, _ = dropped(5, shuffled=True)
    assert "688 rows" in (climb.evidence_of_nothing(climb.best_of([start]).arrangement) or "")


@pytest.mark.parametrize(("times", "follows"), [(-9, False), (0.8, False), (4, False), (8, True)])
def test_outputs_follow_pred_where_they_correlate_by_six_times_what_chance_gives(times, follows):
    climb, truth, _, _ = dropped(5)
    x, pred = climb.many
    unseen, rng = np.asarray(pred, np.float64)[ladder.ROWS :, 0], np.random.default_rng(0)
    along = (unseen - unseen.mean()) / unseen.std()
    across = rng.normal(size=len(along))
    across -= across.mean() + along * np.mean(along * across)
    share = times / len(along) ** 0.5
    wanted = share * along + (1 - share**2) ** 0.5 * across / across.std()
    climb.many = x, jnp.concatenate([pred[: ladder.ROWS], wanted[:, None].astype(np.float32)])
    assert (climb.evidence_of_nothing(truth) is None) == follows


def test_a_stop_ends_every_rung_at_once():
    climb, _, start, _ = dropped(6)
    climb.stop = lambda: "time limit"
    at = climb.best_of([start])
    assert at.rounds == 0
    np.testing.assert_array_equal(climb.scanned(climb.warmed(climb.paired(at))).arrangement, start)


def test_annealing_alone_forms_an_order():
    climb, truth, start, _ = dropped(7)
    found = climb.annealed(climb.few, start, 1e-2, 1e-6, 300, seed=1)
    np.testing.assert_array_equal(found.arrangement, truth)
