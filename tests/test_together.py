"""Solves whose calls are run together: each has what it would have alone, whoever ends first, and whatever fails."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from builders import random_puzzle

import dropjax
from dropjax.runtime import together
from dropjax.runtime.programs import program


@program(shared=True)
def twice(x):
    return {"twice": 2 * x, "sum": jnp.sum(x)}


def test_a_batch_gives_each_call_its_own_result():
    run = together.batched(lambda x, by: (x * by, jnp.sum(x)), 2)
    first, second = run(np.arange(3.0), np.float32(2), np.ones(3), np.float32(5))
    np.testing.assert_array_equal(first[0], [0, 2, 4])
    np.testing.assert_array_equal(second[0], [5, 5, 5])
    assert (float(first[1]), float(second[1])) == (3, 3)


def members(count: int, size: int, body: Callable[[int], object]) -> list:
    """What each of so many members of one group returns."""
    group, begun = together.Together(size), threading.Barrier(count)

    def member(number: int):
        with group.member():
            begun.wait()
            return body(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(member, range(count)))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each batch consisted of."""
    counts: list[int] = []
    run = together.Together._run

    def counted(self, calls):
        counts.extend([len(calls)] if calls else [])
        run(self, calls)

    monkeypatch.setattr(together.Together, "_run", counted)
    return counts


@pytest.mark.parametrize("count", [1, 2, 3])
def test_calls_of_one_program_are_one_call(count, ran):
    found = members(count, 3, lambda number: twice(np.full(4, number, np.float32)))
    assert [float(one["sum"]) for one in found] == [4 * number for number in range(count)]
    assert ran == [count]


def test_who_waits_for_another_program_is_caught_up_with(ran):
    def body(number: int):
        sizes = (4, 5) if number else (5,)
        return [float(twice(np.ones(size, np.float32))["sum"]) for size in sizes]

    assert members(3, 3, body) == [[5.0], [4.0, 5.0], [4.0, 5.0]]
    assert ran == [2, 3]


def test_who_ends_early_or_calls_another_program_holds_nobody_up():
    def body(number: int):
        last = 0.0
        for k in range(number):
            last = twice(np.full(4 + number % 2, k, np.float32))["sum"]
        return float(last) if number else None

    assert members(4, 4, body) == [None, 0.0, 4.0, 10.0]


def test_what_fails_fails_for_those_who_called_it():
    def fail(*_):
        raise RuntimeError("broken")

    def body(number: int):
        if number == 0:
            group = together.current()
            assert group is not None
            return group.call(fail, [np.float32(0)])
        return float(twice(np.ones(4, np.float32))["sum"])

    with pytest.raises(RuntimeError, match="broken"):
        members(2, 2, body)


def test_large_puzzles_are_solved_by_themselves(ran):
    made = [random_puzzle(np.random.default_rng(seed), L=5, d=12, h=20, rows=300) for seed in range(2)]
    few = made[0][0].x.nbytes
    assert all(one.solved for one in dropjax.solve_many((puzzle for puzzle, _ in made), together=2, memory=few))
    assert ran == []


def test_a_batch_of_puzzles_comes_back_as_one_by_one(ran):
    # Five puzzles for three places, the last of another shape.
    made = [random_puzzle(np.random.default_rng(seed), L=5, d=12, h=20, rows=300 - 100 * (seed == 4)) for seed in range(5)]
    alone = [dropjax.solve(puzzle) for puzzle, _ in made]
    both = list(dropjax.solve_many((puzzle for puzzle, _ in made), together=3))
    assert [one.permutation for one in both] == [answer for _, answer in made]
    assert max(ran) == 3
    for one, other in zip(both, alone, strict=True):
        assert (one.permutation, one.outcome, one.seed_order, one.ties) == (
            other.permutation,
            other.outcome,
            other.seed_order,
            other.ties,
        )
        assert [stage.name for stage in one.stages] == [stage.name for stage in other.stages]
