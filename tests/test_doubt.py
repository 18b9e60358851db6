"""Which blocks the best orders of an unfinished search do not agree on."""

from itertools import combinations

import numpy as np
import pytest

from dropjax.search import doubt


def order(*ins: int, partner: dict[int, int] | None = None) -> np.ndarray:
    """Blocks by their input halves; output halves have the same numbers unless told."""
    return np.array([[n, (partner or {}).get(n, n)] for n in ins], np.int32)


def longest(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the longest common subsequence, by trying all."""
    blocks, wanted = [tuple(b) for b in one.tolist()], [tuple(b) for b in other.tolist()]
    for length in range(len(blocks), 0, -1):
        for chosen in combinations(blocks, length):
            if all(b in wanted for b in chosen) and list(chosen) == sorted(chosen, key=wanted.index):
                return length
    return 0


@pytest.mark.parametrize("seed", range(20))
def test_what_agrees_is_a_longest_common_subsequence(seed: int):
    rng = np.random.default_rng(seed)
    one, other = order(*rng.permutation(7)), order(*rng.permutation(7), partner={3: 4, 4: 3} if seed % 2 else None)
    kept = one[doubt.agreeing(one, other)]
    places = [np.flatnonzero((other == block).all(axis=1)) for block in kept]
    assert all(len(place) == 1 for place in places)
    assert [int(place[0]) for place in places] == sorted(int(place[0]) for place in places)
    assert len(kept) == longest(one, other)


def test_a_block_that_was_moved_far_is_in_doubt_and_not_those_that_it_passed():
    found = doubt.unsettled([order(0, 1, 2, 3, 4, 5), order(1, 2, 3, 4, 0, 5)], [1.0, 1.5])
    np.testing.assert_array_equal(found, [0])


def test_blocks_with_other_partners_are_in_doubt():
    found = doubt.unsettled([order(5, 4, 3), order(5, 4, 3, partner={5: 3, 3: 5})], [1.0, 1.0])
    np.testing.assert_array_equal(found, [3, 5])


def test_far_worse_orders_and_lone_ones_raise_no_doubt():
    one, other = order(0, 1, 2, 3), order(3, 2, 1, 0)
    assert len(doubt.unsettled([one, other], [1.0, 3.1])) == 0
    assert len(doubt.unsettled([one], [1.0])) == 0
    assert len(doubt.unsettled([one, other], [np.inf, np.inf])) == 3


def test_only_the_best_are_asked():
    orders = [order(0, 1, 2, 3)] * 5 + [order(3, 0, 1, 2)]
    assert len(doubt.unsettled(orders, [1.0] * 5 + [1.1])) == 0
    np.testing.assert_array_equal(doubt.unsettled(orders[4:], [1.0, 1.1]), [3])


def test_what_any_of_the_others_disagrees_on_is_in_doubt():
    best = order(0, 1, 2, 3, 4, 5)
    # Each of the others has moved another block; the last one agrees with the best on both of these.
    others = [order(1, 2, 3, 4, 5, 0), order(5, 0, 1, 2, 3, 4), order(0, 1, 3, 2, 4, 5)]
    found = doubt.unsettled([best, *others], [1.0, 1.1, 1.2, 1.3])
    assert {0, 5} <= set(found)
    assert len({2, 3} & set(found)) == 1
    assert not {1, 4} & set(found)
    np.testing.assert_array_equal(doubt.differing(best, others[:2]), [0, 5])
    assert len(doubt.differing(best, [])) == 0


def test_orders_without_a_block_in_common_agree_on_none():
    assert not doubt.agreeing(order(0, 1, 2), order(0, 1, 2, partner={0: 1, 1: 2, 2: 0})).any()


def test_blocks_in_doubt_go_by_their_input_halves_and_one_other_order_is_enough():
    one, other = order(0, 1, 2, partner={0: 1, 1: 2, 2: 0}), order(1, 0, 2, partner={0: 1, 1: 2, 2: 0})
    np.testing.assert_array_equal(
        doubt.unsettled([one, other, one], [1.0, 1.0, 1.0]), doubt.unsettled([one, other], [1, 1.0])
    )
    np.testing.assert_array_equal(doubt.unsettled([order(0, 1, partner={0: 7}), order(0, 1)], [1.0, 1.0]), [0])
