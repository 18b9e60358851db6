import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import builders
import jax
import numpy as np
import pytest

import dropjax
from dropjax.core.protocols import StopReason
from dropjax.core.solution import Outcome
from dropjax.core.stack import ACTIVATIONS, forward
from dropjax.ordering import places
from dropjax.ordering.straightening import start_straightening
from dropjax.runtime import device
from dropjax.runtime.compile_clock import CompileClock
from dropjax.search import ladder, order_rungs, peeling_rung, solving, stages, strategies, verify, yardstick
from dropjax.search.verdict import judged

SHAPE = {"L": 8, "d": 12, "h": 20, "rows": 300}
"""Settings of the planted puzzles: pairs show in the weights, depth in the residuals' size."""


def planted(seed=0, **changes):
    return builders.random_puzzle(np.random.default_rng(seed), **{**SHAPE, **changes})


@pytest.fixture(autouse=True)
def short_annealing(monkeypatch):
    """Small stacks need few rounds."""
    monkeypatch.setattr(ladder, "ROUNDS", (300, 100))


class Diary(dropjax.Progress):
    def __init__(self):
        self.begun, self.ended, self.heard = [], [], []

    def begins(self, stage):
        self.begun.append(stage)

    def goes_on(self, status):
        self.heard.append((self.begun[-1], status))

    def ends(self, stage):
        self.ended.append(stage)


@pytest.mark.parametrize("method", ["auto", "paper"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_planted_stack_comes_back(method, outputs):
    puzzle, permutation = planted(1, o=outputs)
    solution = dropjax.solve(puzzle, method=method)
    assert solution.permutation == permutation
    assert solution.outcome is Outcome.EXACT
    assert solution.stop_reason == "solved"
    assert solution.mse == pytest.approx(0, abs=1e-11)
    assert solution.rows == 300
    np.testing.assert_allclose(forward(solution.stack, puzzle.x), puzzle.pred, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "activation"),
    [
        ("auto", "relu"),
        ("auto", "gelu"),
        pytest.param("auto", "silu", marks=pytest.mark.slow),
        pytest.param("auto", "tanh", marks=pytest.mark.slow),
        pytest.param("paper", "silu", marks=pytest.mark.slow),
    ],
)
def test_the_activation_is_found_by_trying_each(method, activation):
    puzzle, permutation = planted(4, L=6, activation=activation)
    diary = Diary()
    solution = dropjax.solve(puzzle, method=method, activation="auto", progress=diary)
    assert solution.stack.activation == activation
    assert solution.permutation == permutation
    assert solution.outcome is Outcome.EXACT
    tried = [stage.split(", ")[1] for stage in diary.begun if "," in stage]
    assert tried[0] == "relu"
    assert tried[-1] == activation
    assert diary.begun[0] == "pairing"


@pytest.mark.slow
def test_what_no_activation_reproduces_is_the_best_of_all():
    puzzle, _ = planted(5, L=3)
    puzzle = dataclasses.replace(puzzle, pred=np.random.default_rng(0).normal(size=puzzle.pred.shape).astype(np.float32))
    alone = [dropjax.solve(puzzle, method="paper", activation=name).mse for name in ACTIVATIONS]
    solution = dropjax.solve(puzzle, method="paper", activation="auto")
    assert not solution.solved
    assert solution.mse == pytest.approx(min(alone))


def test_a_start_that_stands_the_wrong_way_round_is_turned(monkeypatch):
    monkeypatch.setattr(strategies, "climb_ladder", lambda _: pytest.fail("guided repair is enough"))
    puzzle, permutation = planted(1, L=16)
    backwards = [*np.reshape(permutation[:-1], (-1, 2))[::-1].reshape(-1).tolist(), permutation[-1]]
    solution = dropjax.solve(puzzle, initial_order=backwards)
    assert solution.permutation == permutation
    assert solution.seed_order == "given, reversed"
    for direction in ("ascending", "descending"):
        solution = dropjax.solve(puzzle, seed_order="delta_norm", direction=direction)
        assert solution.permutation == permutation
        assert solution.seed_order.startswith(f"delta_norm {direction}")


@pytest.mark.slow
def test_all_starts_are_straightened_before_the_best_of_them_is_repaired(monkeypatch):
    puzzle, permutation = planted(1, L=9)
    blocks = np.reshape(permutation[:-1], (9, 2))[[1, 0, 2, 3, 5, 4, 6, 8, 7]]
    given = [*map(int, blocks.ravel()), permutation[-1]]
    diary = Diary()
    assert dropjax.solve(puzzle, initial_order=given, progress=diary).permutation == permutation
    assert diary.begun == ["pairing", "straightening", "verify"]
    monkeypatch.setattr(stages, "straighten", lambda _, arrangement, *__: start_straightening(arrangement))
    diary = Diary()
    solution = dropjax.solve(puzzle, initial_order=given, progress=diary)
    assert solution.permutation == permutation
    assert solution.seed_order == "given"
    assert diary.begun == ["pairing", "straightening", "straightening", "guided repair", "verify"]


@pytest.mark.slow
def test_with_a_time_limit_it_starts_again_until_the_time_is_up(monkeypatch):
    monkeypatch.setattr(strategies, "ATTEMPTS", 1)
    monkeypatch.setattr(strategies, "RANDOM_STARTS", 1)
    monkeypatch.setattr(ladder, "ROUNDS", (40, 20))
    puzzle, _ = planted(6, L=5)
    noise = 0.3 * puzzle.pred.std() * np.random.default_rng(1).normal(size=puzzle.pred.shape)
    noisy = dataclasses.replace(puzzle, pred=(puzzle.pred + noise).astype(np.float32))

    def scans(**options):
        diary = Diary()
        enough = lambda: sum(stage.name == "exact scan" for stage in diary.ended) >= 3  # noqa: E731
        solution = dropjax.solve(noisy, progress=diary, interrupted=enough, **options)
        return solution.stop_reason, [stage.name for stage in diary.ended].count("exact scan")

    assert scans() == ("no move lowers the MSE", 1)
    assert scans(time_limit=1e6) == ("interrupted", 3)


@pytest.mark.slow
def test_a_search_that_stalls_names_the_blocks_that_its_best_orders_do_not_agree_on(monkeypatch):
    monkeypatch.setattr(ladder, "ROUNDS", (40, 20))
    monkeypatch.setattr(strategies, "RANDOM_STARTS", 2)
    monkeypatch.setattr(strategies, "ATTEMPTS", 1)
    puzzle, permutation = planted(6)
    noise = 0.3 * puzzle.pred.std() * np.random.default_rng(1).normal(size=puzzle.pred.shape)
    noisy = dataclasses.replace(puzzle, pred=(puzzle.pred + noise).astype(np.float32))
    solution = dropjax.solve(noisy)
    assert not solution.solved
    assert solution.mse_of_variance == pytest.approx(solution.mse / noisy.pred.var(), rel=1e-4)
    assert 0 < len(solution.unsettled) < 8
    assert set(solution.unsettled) <= set(permutation[:-1:2])
    settled = [n for n in solution.permutation[:-1:2] if n not in solution.unsettled]
    assert settled == [n for n in permutation[:-1:2] if n in settled]
    assert dropjax.solve(puzzle).unsettled == ()


@pytest.mark.parametrize("rank", ["bradley_terry", "none"])
@pytest.mark.parametrize("seed_order", ["delta_norm", "w_out_norm", "random"])
def test_every_route_of_the_paper_ends_at_the_answer(rank, seed_order):
    puzzle, permutation = planted(2, L=6)
    solution = dropjax.solve(puzzle, method="paper", rank=rank, seed_order=seed_order, bt_solver="newton")
    assert solution.permutation == permutation
    assert solution.seed_order == seed_order
    names = [stage.name for stage in solution.stages]
    assert ("bradley-terry" in names) == (rank == "bradley_terry")


@pytest.mark.slow
def test_predictions_of_another_stack_are_not_solved():
    puzzle, _ = planted(3, L=5)
    shuffled = dataclasses.replace(puzzle, pred=puzzle.pred[np.random.default_rng(0).permutation(300)])
    solution = dropjax.solve(shuffled)
    assert solution.outcome is Outcome.NOT_SOLVED
    assert not solution.solved
    assert solution.stop_reason is StopReason.STALLED
    assert solution.ties == ()
    assert sorted(solution.permutation) == list(range(11))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_that_the_weights_do_not_show_are_read_off_the_errors(seed):
    puzzle, permutation = planted(seed, L=6, coupling=0, rows=1500)
    by_ratio = dropjax.solve(puzzle, method="paper")
    assert not by_ratio.solved
    solution = dropjax.solve(puzzle)
    assert solution.permutation == permutation
    assert solution.seed_order == "ladder"
    assert "least squares" in [stage.name for stage in solution.stages]


def test_predictions_that_follow_nothing_end_the_search_early():
    diary = Diary()
    puzzle, _ = planted(3, L=5, rows=2000)
    shuffled = dataclasses.replace(puzzle, pred=puzzle.pred[np.random.default_rng(0).permutation(2000)])
    solution = dropjax.solve(shuffled, progress=diary)
    assert solution.outcome is Outcome.NOT_SOLVED
    assert solution.stop_reason is StopReason.NOTHING_TO_FIND
    assert solution.reason is not None
    assert solution.reason.startswith("no order of these pieces reproduces pred: on 1,488 rows")
    assert solution.to_json()["reason"] == solution.reason
    assert [stage.name for stage in solution.stages] == [
        "pairing",
        "seed order",
        "least squares",
        "verify",
    ]
    starts = strategies.FALLBACK_SEEDS + strategies.RANDOM_STARTS
    ladder_heard = [status for stage, status in diary.heard if stage == "least squares" and status.words]
    assert {status.words for status in ladder_heard} == {"attempt 1, rung 1 of 6"}
    assert {(status.done, status.of) for status in ladder_heard if status.of} == {(k, starts) for k in range(starts)}


@pytest.mark.parametrize("method", ["auto", "paper"])
def test_no_time_at_all_still_gives_an_answer_that_says_it_is_none(method):
    puzzle, _ = planted(4)
    solution = dropjax.solve(puzzle, method=method, seed_order="random", time_limit=1e-6)
    assert solution.outcome is Outcome.NOT_SOLVED
    assert solution.stop_reason == "time limit"
    assert sorted(solution.permutation) == list(range(17))


def test_an_interruption_keeps_the_best_so_far():
    puzzle, _ = planted(4)
    solution = dropjax.solve(puzzle, method="paper", interrupted=lambda: True)
    assert solution.stop_reason == "interrupted"
    assert np.isfinite(solution.mse)


def test_rounded_predictions_are_solved_to_their_rounding():
    puzzle, permutation = planted(5)
    rounded = dataclasses.replace(puzzle, pred=np.round(puzzle.pred, 4))
    diary = Diary()
    solution = dropjax.solve(rounded, progress=diary)
    assert solution.permutation == permutation
    assert solution.outcome is Outcome.NOISE_FLOOR
    assert "guided repair" in diary.begun  # on all rows: on few, the noise decides between neighbours
    assert solution.noise_floor == pytest.approx(1e-4 / np.sqrt(12), rel=0.01)


def test_noise_is_never_inferred_and_only_taken_from_the_user():
    puzzle, permutation = planted(6)
    noise = np.random.default_rng(0).normal(0, 1e-3, puzzle.pred.shape)
    noisy = dataclasses.replace(puzzle, pred=(puzzle.pred + noise).astype(np.float32))
    right = dropjax.solve(noisy, initial_order=permutation, method="paper", rank="none")
    assert right.outcome is Outcome.NOT_SOLVED
    declared = dropjax.solve(noisy, pred_noise=1e-3)
    assert declared.outcome is Outcome.NOISE_FLOOR
    assert declared.permutation == permutation


def test_a_given_order_is_checked_and_repaired():
    puzzle, permutation = planted(7)
    checked = dropjax.solve(puzzle, initial_order=permutation)
    assert checked.permutation == permutation
    assert checked.seed_order == "given"
    assert sum(stage.swaps for stage in checked.stages) == 0
    swapped = (*permutation[2:4], *permutation[:2], *permutation[4:])
    repaired = dropjax.solve(puzzle, initial_order=swapped, method="paper", rank="none")
    assert repaired.permutation == permutation


def test_an_order_of_other_pieces_is_refused():
    puzzle, permutation = planted(7)
    for wrong in (permutation[:-1], (permutation[1], permutation[0], *permutation[2:]), (permutation[2], *permutation[1:])):
        with pytest.raises(dropjax.InputError, match="permutation: expected"):
            dropjax.solve(puzzle, initial_order=wrong)


def test_twin_blocks_are_named_as_interchangeable():
    puzzle, permutation = planted(8, L=6)
    arrangement = puzzle.arrangement(permutation)
    first, last = arrangement[0], arrangement[-1]
    twins = {name: getattr(puzzle, name).copy() for name in ("w_in", "b_in", "w_out", "b_out")}
    for name, column in (("w_in", 0), ("b_in", 0), ("w_out", 1), ("b_out", 1)):
        twins[name][last[column]] = twins[name][first[column]]
    puzzle = dataclasses.replace(puzzle, **twins)
    stack = verify.arranged_on_host(puzzle.stack(), arrangement)
    puzzle = dataclasses.replace(puzzle, pred=np.asarray(forward(stack, puzzle.x)))
    solution = dropjax.solve(puzzle)
    assert solution.outcome is Outcome.EXACT_UP_TO_TIES
    groups = {frozenset(group) for group in solution.ties}
    assert {frozenset(permutation[k] for k in (0, -3)), frozenset(permutation[k] for k in (1, -2))} <= groups


def test_progress_hears_of_every_stage():
    puzzle, _ = planted(1)
    diary = Diary()
    solution = dropjax.solve(puzzle, progress=diary)
    assert diary.begun == [stage.name for stage in solution.stages]
    assert diary.ended == list(solution.stages)
    assert all(stage.seconds >= 0 for stage in solution.stages)


def test_progress_hears_of_the_best_so_far_and_of_the_parts_of_a_stage():
    puzzle, _ = planted(1)
    diary, started = Diary(), time.perf_counter()
    solution = dropjax.solve(puzzle, method="paper", time_limit=500.0, progress=diary)
    shares = [status.share for _, status in diary.heard if status.share is not None]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(solution.mse / puzzle.pred.var(), rel=0.01)
    assert all(started + 500 <= status.deadline <= time.perf_counter() + 500 for _, status in diary.heard)
    parts = {(status.done, status.of) for stage, status in diary.heard if stage == "bradley-terry"}
    assert parts == {(0, 0), (0, stages.MOVES_PER_CALL)}  # 28 swaps, filled up
    assert {status.of for stage, status in diary.heard if stage != "bradley-terry"} == {0}


def test_a_second_puzzle_of_the_same_shape_compiles_nothing():
    first, second = planted(10)[0], planted(11)[0]
    dropjax.solve(first)
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        solution = dropjax.solve(second)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert solution.seconds["compile"] == 0


def test_many_puzzles_come_back_in_order_and_as_if_alone():
    planned = [planted(seed, L=depth) for seed, depth in ((20, 5), (21, 6), (22, 5), (23, 6), (24, 5))]
    solutions = list(dropjax.solve_many(puzzle for puzzle, _ in planned))
    assert [solution.permutation for solution in solutions] == [permutation for _, permutation in planned]


def test_many_puzzles_together_start_no_more_threads_than_cores(monkeypatch):
    shares = []

    def noted(*arguments, **named):
        shares.append(device.workers())
        return judged(*arguments, **named)

    monkeypatch.setattr(solving, "judged", noted)
    puzzles = [planted(seed, L=5)[0] for seed in (20, 21, 22)]
    assert all(solution.solved for solution in dropjax.solve_many(puzzles))
    assert shares == [1, 1, 1]
    dropjax.solve(puzzles[0])
    assert shares[-1] == device.workers() == os.cpu_count()


def test_compile_time_counts_for_the_solve_that_caused_it():
    with CompileClock() as outer:
        with ThreadPoolExecutor(1) as pool, CompileClock() as inner:
            start = time.perf_counter()
            alone = pool.submit(lambda: jax.jit(lambda x: x * 3 + 1)(1.0).block_until_ready())
            alone.result()  # another solve's thread: not of this context
            assert inner.seconds(start, time.perf_counter()) == 0
            pool.submit(copy_context().run, lambda: jax.jit(lambda x: x * 5 + 1)(1.0).block_until_ready()).result()
            assert inner.seconds(start, time.perf_counter()) > 0
        assert outer.seconds(start, time.perf_counter()) == 0


def test_unknown_options_are_refused():
    puzzle, _ = planted(1)
    with pytest.raises(TypeError, match="colour"):
        dropjax.solve(puzzle, colour="red")  # pyright: ignore[reportCallIssue]  # that is what is tested


@pytest.mark.usefixtures("real_folder")
class TestRealPuzzle:
    SHA256 = "093be1cf2d24094db903cbc3e8d33d306ebca49c6accaa264e44b0b675e7d9c4"  # from the puzzle's own page

    def test_auto(self, real_puzzle):
        solution = dropjax.solve(real_puzzle)
        assert solution.sha256 == self.SHA256
        assert solution.outcome is Outcome.EXACT

    @pytest.mark.slow
    @pytest.mark.parametrize("seed_order", ["delta_norm", "w_out_norm"])
    def test_paper_without_bradley_terry(self, real_puzzle, seed_order):
        solution = dropjax.solve(real_puzzle, method="paper", seed_order=seed_order, rank="none", search_rows=600)
        assert solution.sha256 == self.SHA256

    @pytest.mark.slow
    def test_bradley_terry_on_few_rows(self, real_puzzle):
        solution = dropjax.solve(real_puzzle, method="paper", search_rows=250, bt_solver="newton")
        ranked = next(stage for stage in solution.stages if stage.name == "bradley-terry")
        assert ranked.evaluations == 1128
        assert ranked.mse is not None and ranked.mse < 0.01  # the paper's 2,000 rows give 0.002989


@pytest.mark.slow
def test_a_deep_stack_is_put_in_order_by_places_or_by_peeling(monkeypatch):
    monkeypatch.setattr(places, "DEEP", 8)
    puzzle, permutation = planted(3, L=9)
    blocks = np.reshape(permutation[:-1], (9, 2))[[2, 0, 1, 4, 3, 7, 5, 6, 8]]
    given = {"initial_order": [*map(int, blocks.ravel()), permutation[-1]], "random_seed": 1}
    diary = Diary()
    solution = dropjax.solve(puzzle, **given, progress=diary)
    assert solution.permutation == permutation
    assert diary.begun == ["pairing", "places", "verify"]
    monkeypatch.setattr(order_rungs, "placing_round", lambda stack, start, at, *_: at._replace(waited=places.PATIENCE))
    monkeypatch.setattr(stages, "guided", lambda run, arrangement: arrangement)
    peeled = dropjax.solve(puzzle, **given)
    assert peeled.permutation == permutation
    assert [stage.name for stage in peeled.stages] == ["pairing", "places", "peeling", "verify"]
    monkeypatch.setattr(peeling_rung, "peel", lambda stack, at, *_: at._replace(placed=1))  # it knows nothing
    stuck = dropjax.solve(puzzle, **given, progress=diary)
    assert stuck.outcome is Outcome.NOT_SOLVED
    assert stuck.stop_reason is StopReason.STALLED
    assert "annealing" not in diary.begun


def test_what_is_exact_but_can_be_told_from_the_answer_is_repaired_on(monkeypatch):
    # A wrong order counts as solved, as swaps of a deep stack's neighbours do.
    monkeypatch.setattr(yardstick, "EXACT", 1.0)
    monkeypatch.setattr(verify, "near_moves", lambda *_: verify.Near.none())
    monkeypatch.setattr(stages, "straightened", lambda _, arrangement: arrangement)
    puzzle, permutation = planted(3, L=9)
    blocks = np.reshape(permutation[:-1], (9, 2))[[1, 0, 2, 3, 4, 6, 5, 7, 8]]
    diary = Diary()
    given = [*map(int, blocks.ravel()), permutation[-1]]
    assert dropjax.solve(puzzle, initial_order=given, progress=diary).permutation == permutation
    assert diary.begun == ["pairing", "guided repair", "verify"]
