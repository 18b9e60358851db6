"""`order` and `check_order`: their results, the words about them, and what they refuse."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from builders import random_puzzle

import dropjax
from dropjax import InputError, Minimum, Outcome
from dropjax.network import moves, search
from dropjax.network.mlp import mlp_network
from dropjax.network.protocol import make
from dropjax.network.result import Progress
from dropjax.network.scorer import Scorer
from dropjax.network.search import Search
from dropjax.network.solving import identity
from dropjax.runtime.journal import Journal

CASES = {
    "P=1": lambda rng: networks.plain(rng, L=7, d=8),
    "P=2": lambda rng: networks.transformer(rng, L=5),
    "P=3, pytree": networks.thirds,
}


def case(name, seed=0):
    rng = np.random.default_rng(seed)
    block, parts, x = CASES[name](rng)
    return block, *networks.dropped(rng, block, parts, x), x


@pytest.mark.parametrize("name", CASES)
def test_dropped_parts_come_back_and_are_said_to_be_exact(name):
    block, parts, target, answer, x = case(name)
    found = dropjax.order(block, parts, x, target)
    assert found.outcome is Outcome.EXACT, found
    np.testing.assert_array_equal(found.arrangement, answer)
    assert found.error is not None and found.tolerance is not None and found.error <= found.tolerance < 1e-3
    assert found.start_loss > found.loss
    again = networks.outputs(block, found.arranged(parts), np.tile(np.arange(len(answer))[:, None], answer.shape[1]), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), again, target)
    assert found.to_json()["solved"] is True


@pytest.mark.parametrize(("L", "in_turn"), [(9, True), pytest.param(12, False, marks=pytest.mark.slow)])
def test_a_deep_network_is_ordered_by_first_order_scores(L, in_turn, monkeypatch):
    monkeypatch.setattr(search, "JOINTLY_FROM", 12)
    rng = np.random.default_rng(1)
    whole, parts, x = networks.transformer(rng, L=L, rows=8)
    block = (networks.attention, networks.mlp) if in_turn else lambda p, x: x + 0.3 * (whole(p, x) - x)
    parts, target, answer = networks.dropped(rng, whole if in_turn else block, parts, x)
    assert Search(Scorer.of(make(block, parts), x, target, chunk=8), lambda *_: False).guided
    found = dropjax.order(block, parts, x, target)
    assert found.outcome is Outcome.EXACT
    np.testing.assert_array_equal(found.arrangement, answer)


def test_another_networks_outputs_are_never_called_solved():
    block, parts, _, _, x = case("P=2")
    _, _, other, _, _ = case("P=2", seed=1)
    found = dropjax.order(block, parts, x, other, time_limit=5)
    assert found.outcome is Outcome.NOT_SOLVED
    assert not found.solved
    assert found.error is not None and found.error > 0.01
    assert found.ties == ()


def test_declared_noise_in_the_target_is_allowed_for_and_no_other():
    block, parts, target, answer, x = case("P=1")
    noisy = target + 1e-3 * np.random.default_rng(9).normal(size=target.shape).astype(np.float32)
    found = dropjax.order(block, parts, x, noisy, target_noise=1e-3)
    assert found.outcome is Outcome.NOISE_FLOOR
    np.testing.assert_array_equal(found.arrangement, answer)
    for noise in (None, 1e-5):
        undeclared = dropjax.order(block, parts, x, noisy, start=answer, target_noise=noise, interrupted=lambda: True)
        assert undeclared.outcome is Outcome.NOT_SOLVED


def test_half_precision_is_judged_by_its_own_noise():
    rng = np.random.default_rng(10)
    w, x = (jnp.asarray(rng.normal(size=shape) / 4, jnp.bfloat16) for shape in ((6, 16, 16), (20, 16)))
    block = lambda p, x: x + jnp.tanh(x @ p[0])  # noqa: E731
    dropped, target, answer = networks.dropped(rng, block, (w,), x)
    found = dropjax.order(block, dropped, x, target)
    assert found.solved
    np.testing.assert_array_equal(found.arrangement, answer)


def test_equal_parts_are_listed_as_ties():
    rng = np.random.default_rng(2)
    block, parts, x = CASES["P=1"](rng)
    parts[0][3] = parts[0][5]
    dropped, target, answer = networks.dropped(rng, block, parts, x)
    found = dropjax.order(block, dropped, x, target)
    assert found.outcome is Outcome.EXACT_UP_TO_TIES
    assert found.solved
    ((tie),) = found.ties
    assert (tie.i, tie.j, tie.insertion, tie.whole) == (3, 5, False, True)
    differs = np.flatnonzero(found.arrangement[:, 0] != answer[:, 0])
    assert set(differs) <= {3, 5}


def test_a_loss_alone_gives_a_minimum_and_no_solution():
    block, parts, target, _, x = case("P=1")
    found = dropjax.order(block, parts, x, loss=lambda outputs: jnp.mean((outputs - target) ** 2, axis=1))
    assert found.outcome is Minimum.LOCAL
    assert not found.solved
    assert found.error is found.tolerance is None
    listed = moves.moved(found.arrangement, moves.every_move(7, [1]))
    losses = Scorer.of(make(block, parts), x, target, chunk=7).losses(listed)
    assert losses.min() >= found.loss * (1 - 1e-4)


def test_all_arrangements_of_few_blocks_are_tried():
    block, parts, x = networks.plain(np.random.default_rng(3), L=3)
    found = dropjax.order(block, parts, x, loss=lambda outputs: outputs[:, 0])
    assert found.outcome is Minimum.GLOBAL
    assert [stage.name for stage in found.stages] == ["every arrangement", "verify"]


def test_moves_that_the_rows_do_not_decide_on_are_listed():
    rng = np.random.default_rng(4)
    block, parts, x = networks.plain(rng, L=7, rows=6)
    same = (np.repeat(parts[0][:1], 7, axis=0),)
    found = dropjax.order(block, same, x, loss=lambda outputs: outputs[:, 0])
    assert found.undecided  # no exchange of equal blocks does anything


def test_a_loss_of_labels_is_no_target_to_reproduce():
    block, parts, target, _, x = case("P=1")
    labels = target.argmax(axis=1)

    def loss(outputs, labels):
        return -jax.nn.log_softmax(4 * outputs)[jnp.arange(len(labels)), labels]

    found = dropjax.order(block, parts, x, labels, loss=loss)
    assert found.outcome in (Minimum.LOCAL, Minimum.STOPPED)
    assert found.loss <= found.start_loss


def test_a_loss_of_its_own_with_outputs_to_reproduce_is_judged_by_these():
    block, parts, target, answer, x = case("P=1")
    found = dropjax.order(block, parts, x, target, loss=lambda a, b: jnp.mean(jnp.abs(a - b), axis=1))
    assert found.outcome is Outcome.EXACT
    np.testing.assert_array_equal(found.arrangement, answer)


# Checking


def test_parts_that_stand_right_are_exact_as_they_stand():
    rng = np.random.default_rng(5)
    block, parts, x = CASES["P=2"](rng)
    _, target, _ = networks.dropped(rng, block, parts, x)
    found = dropjax.check_order(block, parts, x, target)
    assert found.sound
    assert (found.wrong, found.mending) == ((), ())
    assert str(found) == "exact as it stands"
    assert found.ordering.stages[0].name == "verify"  # nothing was searched


def test_what_stands_wrong_is_named_with_moves_that_mend_it():
    rng = np.random.default_rng(6)
    block, parts, x = CASES["P=2"](rng)
    _, target, _ = networks.dropped(rng, block, parts, x)
    wrong = (parts[0], jax.tree.map(lambda a: a[[0, 3, 2, 1, 4]], parts[1]))
    found = dropjax.check_order(block, wrong, x, target)
    assert not found.sound
    assert found.wrong == (1, 3)
    assert [str(move) for move in found.mending] == ["exchange part 1 of blocks 1 and 3"]
    with pytest.raises(InputError, match="start: "):
        dropjax.check_order(block, wrong, x, target, start=np.zeros((5, 2)))


@pytest.mark.parametrize("seed", range(8))
def test_mending_makes_the_arrangement(seed):
    rng = np.random.default_rng(seed)
    arrangement = np.stack([rng.permutation(6) for _ in range(3)], axis=1)
    if seed % 2:
        arrangement[:, 1] = arrangement[:, 0]
    at = np.tile(np.arange(6)[:, None], 3)
    for move in moves.mending(arrangement):
        (at,) = moves.moved(at, move[None])
    np.testing.assert_array_equal(at, arrangement)
    assert len(moves.mending(np.tile(np.arange(6)[:, None], 3))) == 0


def test_an_annealing_leaves_a_minimum_and_comes_back_no_worse():
    block, parts, target, _, x = case("P=2")
    scorer = Scorer.of(make(block, parts), x, target, chunk=4)
    annealer = Search(scorer, lambda *_: False)
    at = annealer.descend(annealer.shuffled(0), 4)
    seen = []
    annealer.keep = lambda function, like: seen.append(function()) or seen[-1]
    best = annealer.annealed(at, 4, 4)
    assert len(seen) == 60
    assert max(loss for _, loss in seen) > at.loss  # it goes uphill
    np.testing.assert_allclose(scorer.losses(best[None], 4)[0], min(at.loss, *(loss for _, loss in seen)), rtol=1e-5)


# Starting, stopping, going on


def test_a_search_that_is_interrupted_or_out_of_time_gives_its_best():
    block, parts, target, _, x = case("P=2")
    stopped = dropjax.order(block, parts, x, target, interrupted=lambda: True)
    assert (stopped.outcome, stopped.stop_reason) == (Outcome.NOT_SOLVED, "interrupted")
    late = dropjax.order(block, parts, x, target, time_limit=1e-9)
    assert (late.outcome, late.stop_reason) == (Outcome.NOT_SOLVED, "time limit")
    alone = dropjax.order(block, parts, x, loss=lambda outputs: outputs[:, 0, 0], interrupted=lambda: True)
    assert alone.outcome is Minimum.STOPPED


def test_a_given_start_that_is_right_is_the_answer():
    block, parts, target, answer, x = case("P=2")
    found = dropjax.order(block, parts, x, target, start=answer)
    np.testing.assert_array_equal(found.arrangement, answer)
    assert [stage.name for stage in found.stages] == ["verify"]


def test_a_search_goes_on_with_its_journal_to_the_same_answer(tmp_path):
    block, parts, target, _, x = case("P=2", seed=7)
    calls = iter([False] * 6)
    depends_on = identity(parts, x, target)
    journal = Journal(tmp_path / "search", depends_on, every=0)
    cut = dropjax.order(block, parts, x, target, interrupted=lambda: next(calls, True), journal=journal)
    assert cut.stop_reason == "interrupted"
    resumed = Journal(tmp_path / "search", depends_on, resume=True)
    ended = dropjax.order(block, parts, x, target, journal=resumed)
    whole = dropjax.order(block, parts, x, target)
    assert ended.outcome is whole.outcome is Outcome.EXACT
    np.testing.assert_array_equal(ended.arrangement, whole.arrangement)
    assert ended.evaluations < whole.evaluations


def test_progress_is_told_and_a_second_call_compiles_nothing():
    block, parts, target, _, x = case("P=2")
    seen = []

    class Note(Progress):
        def begins(self, stage):
            seen.append(stage)

        def ends(self, stage):
            seen.append(stage.name)

    first = dropjax.order(block, parts, x, target, progress=Note())
    assert seen == [name for stage in first.stages for name in (stage.name, stage.name)]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    other = jax.tree.map(lambda a: 1.01 * a, parts)
    dropjax.order(block, other, x, target, interrupted=lambda: True)
    dropjax.order(block, parts, x, target)
    assert not compiled


def test_a_planted_stack_comes_back_as_from_solve():
    puzzle, permutation = random_puzzle(np.random.default_rng(8), L=6, d=6, h=8, o=2, rows=200)
    solution = dropjax.solve(puzzle)
    network = mlp_network(puzzle.stack())
    found = dropjax.order(network.steps[0], network.parts, puzzle.x, puzzle.pred, read_out=network.read_out)
    assert solution.outcome is found.outcome is Outcome.EXACT
    assert puzzle.permutation(found.arrangement) == solution.permutation == permutation


# Bad input

w = np.ones((4, 3, 3), np.float32)
rows = np.ones((5, 3), np.float32)


def add(p, x):
    return x + p[0].sum() * x


def test_blocks_of_one_kind_are_stacked_and_refused_in_one_line_where_they_differ():
    layers = [{"w": np.full((2, 3), k, np.float32), "b": np.full(2, k, np.float32)} for k in range(4)]
    stacked = dropjax.stack_parts(layers)
    assert stacked["w"].shape == (4, 2, 3)
    np.testing.assert_array_equal(stacked["b"][:, 0], np.arange(4))
    for other, message in (
        ({"w": np.zeros((2, 4), np.float32), "b": layers[0]["b"]}, r"blocks\[4\]\['w'\]: expected .*\[2, 3\].*\[2, 4\]"),
        ({"w": layers[0]["w"]}, r"blocks\[4\]: expected the structure of blocks\[0\]"),
    ):
        with pytest.raises(InputError, match=message) as error:
            dropjax.stack_parts([*layers, other])
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="expected at least one"):
        dropjax.stack_parts([])


@pytest.mark.usefixtures("unchecked")  # what is tested is what the functions themselves say
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": ()}, "parts: expected a tuple"),
        ({"parts": {"a": w}}, "parts: expected a tuple"),
        ({"parts": ({},)}, r"parts\[0\]: expected a pytree with arrays"),
        ({"parts": ([w, w[:3]],)}, r"parts\[0\]\[1\]: expected 4 blocks .*, got 3"),
        (
            {"parts": (np.array([w, rows], object),)},
            r"parts\[0\]: expected an array .*, got an array of objects",
        ),
        ({"parts": (w, {"b": w[:2]})}, r"parts\[1\]\['b'\]: expected 4 blocks .*, got 2"),
        ({"parts": ({"a": [1.0, 2.0]},)}, r"parts\[0\]\['a'\]\[0\]: expected an array with a leading axis .*, got a float"),
        ({"parts": (np.where(w > 0, np.nan, w),)}, r"parts\[0\]: expected finite numbers"),
        ({"x": np.full((5, 3), np.inf, np.float32)}, "x: expected finite numbers"),
        ({"x": {"a": rows, "b": rows[:4]}}, r"x\['b'\]: expected 5 rows, as x\['a'\] has, got 4"),
        ({"x": np.float32(1)}, "x: expected an array of at least one row"),
        ({"block": "no function"}, "block: expected a function"),
        ({"block": (add, add)}, r"block: expected a function \(parts, state\), or 1.*got 2 of them"),
        (
            {"block": lambda p, x: x[:, :2]},
            r"block: expected float32\[5, 3\] as the state that it was given, got float32\[5, 2\]",
        ),
        ({"block": lambda p, x: (x, x)}, "block: expected the structure of the state"),
        ({"block": lambda p, x: x.astype(jnp.float16)}, r"block: expected float32\[5, 3\]"),
        ({"block": lambda p, x: x @ p[0][:2]}, "block: it cannot be run on these arrays"),
        ({"target": rows[:, :2]}, r"target: expected float32\[5, 3\] as the outputs, got float32\[5, 2\]"),
        ({"target": {"a": rows}}, "target: expected the structure of the outputs"),
        ({"target": np.full((5, 3), np.nan, np.float32)}, "target: expected finite numbers"),
        ({"target": None}, "target: expected the recorded outputs, or a loss"),
        ({"target": None, "loss": lambda outputs: outputs.sum()}, "loss: expected one number for each of 5 rows"),
        ({"target": None, "loss": lambda outputs: None}, "loss: expected one number for each of 5 rows, got a NoneType"),
        ({"target": rows[:4], "loss": lambda a, b: a[:, 0]}, "target: expected 5 rows"),
        ({"read_out": lambda x: x.sum()}, "read_out: expected outputs of 5 rows"),
        ({"start": np.zeros((4, 1), int)}, "start: expected an array"),
        ({"start": np.zeros((3, 1), int)}, "start: expected an array"),
    ],
)
def test_what_does_not_fit_together_is_said_in_one_line(change, message):
    given = {"block": add, "parts": (w,), "x": rows, "target": rows} | change
    with pytest.raises(InputError, match=message) as error:
        dropjax.order(**given)
    assert "\n" not in str(error.value)
