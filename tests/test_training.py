import hashlib
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropjax import console
from dropjax.core.errors import InputError
from dropjax.core.stack import ACTIVATIONS, forward, replay
from dropjax.io.arguments import read_roles
from dropjax.io.loading import load
from dropjax.make import training
from dropjax.make.training import Recipe
from dropjax.runtime import device
from dropjax.train.__main__ import main as train

SMALL = Recipe(depth=4, hidden=7, rate=3e-3, epochs=20, batch=16)
SGD = replace(SMALL, optimizer="sgd", rate=0.01, epochs=2, batch=200)
ARGUMENTS = ["--depth", "3", "--hidden", "7", "--width", "5", "--rows", "40", "--epochs", "2"]


@pytest.fixture(scope="module")
def table():
    return training.generate_table(5, 200, 6)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr(device, "configure", lambda: None)


def final(recipe, table, seeds=(0,)):
    x, true = table
    *_, last = training.epochs(recipe, x, true, seeds)
    return last


def test_the_generated_table_is_what_it_says():
    x, true = training.generate_table(3, 4000, 10, 2, noise=0.5)
    again, _ = training.generate_table(3, 4000, 10, 2, noise=0.5)
    other, _ = training.generate_table(4, 4000, 10, 2)
    assert x.shape == (4000, 10) and true.shape == (4000, 2)
    np.testing.assert_array_equal(x, again)
    assert not np.allclose(x, other)
    np.testing.assert_allclose(np.mean(x, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(x, axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(np.var(true, axis=0), 1.25, rtol=0.1)
    correlation = np.corrcoef(x.T) - np.eye(10)
    assert np.abs(correlation).max() > 0.4
    # a line cannot follow the target
    fitted = x @ np.linalg.lstsq(x, true, rcond=None)[0]
    assert np.mean((fitted - true) ** 2) > 0.5


def test_fresh_layers_are_drawn_as_torch_draws_them():
    stack = training.initial_stack(np.random.default_rng(0), Recipe(depth=3, hidden=50), 20, 2)
    for fan_in, parts in ((20, (stack.w_in, stack.b_in, stack.w_last, stack.b_last)), (50, (stack.w_out, stack.b_out))):
        for part in parts:
            assert np.abs(part).max() <= fan_in**-0.5
    assert np.std(stack.w_in) == pytest.approx((20 * 3) ** -0.5, rel=0.05)
    assert np.std(stack.w_out) == pytest.approx((50 * 3) ** -0.5, rel=0.05)


def test_the_loss_is_the_stacks_own_error(table):
    x, true = table
    stack = training.initial_stack(np.random.default_rng(0), SMALL, 6, 1)
    expected = np.mean((replay(stack, x) - true) ** 2)
    assert training.loss(stack, x, true) == pytest.approx(expected, rel=1e-5)


def test_sgd_takes_the_step_that_its_definition_says(table):
    x, true = table
    first, second = training.epochs(SGD, x, true[:, 0], [3])
    start = training.initial_stack(np.random.default_rng(3), SGD, 6, 1)
    gradient = jax.jit(jax.grad(lambda stack: jnp.mean((forward(stack, x) - true) ** 2)))
    g = gradient(start)
    one = jax.tree.map(lambda p, g: p - 0.01 * g, start, g)
    two = jax.tree.map(lambda p, g, h: p - 0.01 * (0.9 * g + h), one, g, gradient(one))
    for found, expected in ((first.stack(0), one), (second.stack(0), two)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_the_loss_falls_and_repeats_with_the_seed(table):
    losses = [float(epoch.loss[0]) for epoch in training.epochs(SMALL, *table)]
    assert losses[-1] < 0.5 * losses[0]
    a, b, other = (final(SMALL, table, [seed]) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, a.stacks, b.stacks)
    assert not np.allclose(a.stacks.w_in, other.stacks.w_in)


def test_seeds_trained_at_once_equal_seeds_trained_apart(table):
    together = final(SMALL, table, [1, 2, 5])
    for i, seed in enumerate([1, 2, 5]):
        alone = final(SMALL, table, [seed])
        np.testing.assert_allclose(together.loss[i], alone.loss[0], rtol=1e-3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), together.stack(i), alone.stack(0))
    for stack, i in zip(training.train(SMALL, *table, seeds=[1, 2, 5]), range(3), strict=True):
        jax.tree.map(np.testing.assert_array_equal, stack, together.stack(i))


def test_an_epoch_is_compiled_once(table, caplog):
    final(SMALL, table)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        final(SMALL, table, [9])
    assert "_epoch" not in caplog.text


KINDS = [("adam", name) for name in ACTIVATIONS if name != "relu"] + [("adamw", "relu"), ("sgd", "relu")]


@pytest.mark.parametrize(("optimizer", "activation"), KINDS)
def test_every_optimizer_and_every_activation_trains(optimizer, activation, table):
    recipe = replace(SMALL, optimizer=optimizer, activation=activation)
    first, *_, last = training.epochs(recipe, *table)
    assert last.loss[0] < first.loss[0]
    assert last.stacks.activation == activation


def test_decay_shrinks_the_weights(table):
    plain, decayed = final(SMALL, table), final(replace(SMALL, optimizer="adamw", decay=10.0), table)
    assert np.linalg.norm(decayed.stacks.w_out) < 0.9 * np.linalg.norm(plain.stacks.w_out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 0}, "recipe: depth: expected at least 1, got 0"),
        ({"rate": float("nan")}, "recipe: rate: expected a number above 0, got nan"),
        ({"activation": "step"}, f"recipe: activation: expected one of {', '.join(ACTIVATIONS)}, got 'step'"),
        ({"optimizer": "lion"}, "recipe: optimizer: expected one of adam, adamw, sgd, got 'lion'"),
        ({"decay": 0.1}, "recipe: decay: expected 0 with adam (adamw decays), got 0.1"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused(changed, message):
    with pytest.raises(InputError) as error:
        Recipe(**changed)
    assert str(error.value) == message


def test_a_loss_that_runs_away_is_an_error(table):
    with pytest.raises(InputError, match="epoch 2: the rate is too high"):
        final(replace(SGD, rate=1e30), table)


@pytest.mark.parametrize(("hidden", "outputs"), [(7, 1), (6, 1), (7, 3), (6, 6)])
def test_a_dropped_stack_is_put_back_by_its_answer_alone(hidden, outputs):
    x, true = training.generate_table(2, 100, 6, outputs)
    stack = training.initial_stack(np.random.default_rng(0), replace(SMALL, hidden=hidden), 6, outputs)
    puzzle, answer = training.drop(stack, x, true, 7)
    again = training.drop(stack, x, true, 7)[1]
    assert answer == again != training.drop(stack, x, true, 8)[1]
    assert sorted(answer) == list(range(9)) and list(answer) != sorted(answer)
    assert puzzle.permutation(puzzle.arrangement(answer)) == answer
    right = forward(puzzle.stack().arranged(jnp.asarray(puzzle.arrangement(answer))), jnp.asarray(puzzle.x))
    np.testing.assert_array_equal(right, puzzle.pred)
    np.testing.assert_allclose(replay(stack, puzzle.x), puzzle.pred, atol=1e-5)
    ins, outs = list(answer[0:-1:2]), list(answer[1:-1:2])
    for wrong_ins, wrong_outs in ((ins[::-1], outs[::-1]), (ins, outs[1:] + outs[:1])):
        wrong = [number for block in zip(wrong_ins, wrong_outs, strict=True) for number in block] + [answer[-1]]
        arrangement = jnp.asarray(puzzle.arrangement(wrong))
        assert np.abs(forward(puzzle.stack().arranged(arrangement), jnp.asarray(puzzle.x)) - puzzle.pred).max() > 1e-3


def answer_in(path):
    text = path.read_text()
    assert text == text.strip()
    return tuple(map(int, text.split(",")))


def assert_solved_by(puzzle, answer):
    stack = puzzle.stack().arranged(jnp.asarray(puzzle.arrangement(answer)))
    np.testing.assert_allclose(forward(stack, jnp.asarray(puzzle.x)), puzzle.pred, atol=1e-6)


def test_the_command_writes_a_converted_puzzle_and_its_answer(tmp_path, capsys):
    assert train([str(tmp_path / "new" / "small.safetensors"), *ARGUMENTS, "--keep-rows", "30"]) == 0
    puzzle, answer = load(tmp_path / "new" / "small.safetensors"), answer_in(tmp_path / "new" / "small-ANSWER.txt")
    assert puzzle.depth == 3 and puzzle.x.shape == (30, 5)
    assert_solved_by(puzzle, answer)
    out = capsys.readouterr().out
    assert "epoch 2/2  loss " in out
    assert hashlib.sha256((tmp_path / "new" / "small-ANSWER.txt").read_bytes()).hexdigest() in out


def test_the_command_trains_several_seeds_at_once(tmp_path, capsys):
    arguments = [*ARGUMENTS, "--seed", "3,4", "--quiet"]
    assert train([str(tmp_path / "both"), *arguments, "--answer", str(tmp_path / "ANSWER.txt")]) == 0
    for seed in (3, 4):
        assert_solved_by(load(tmp_path / f"both-{seed}"), answer_in(tmp_path / f"ANSWER-{seed}.txt"))
    assert capsys.readouterr().out == ""


def test_the_command_trains_on_a_given_table(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second"
    assert train([str(first), *ARGUMENTS]) == 0
    assert train([str(second), *ARGUMENTS, "--hidden", "5", "--table", str(first)]) == 0
    roles = read_roles(second / "roles.json")
    puzzle, given = load(second, roles), load(first)
    np.testing.assert_array_equal(puzzle.x, given.x)
    np.testing.assert_array_equal(puzzle.true, given.true)
    assert_solved_by(puzzle, answer_in(tmp_path / "second-ANSWER.txt"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: out"),
        (["x.safetensors", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["x.safetensors", "--seed", "1,1"], "argument --seed: expected different numbers"),
        (["x.safetensors", "--activation", "step"], "argument --activation: invalid choice: 'step'"),
        (["x.safetensors", "--batch", "0"], "recipe: batch: expected at least 1, got 0"),
        (["x.safetensors", "--rows", "1"], "table: rows: expected at least 2, got 1"),
        (["x.safetensors", "--keep-rows", "0"], "--keep-rows: expected at least 1, got 0"),
        (["x.safetensors", "--table", "nowhere"], "nowhere: expected a puzzle folder or a converted .safetensors file"),
        (["full"], "full: expected a new or an empty folder to write, got one with something in it"),
        (["."], ".: expected a file or a folder to make, got no name"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        console.run_command(lambda: train(arguments))
    said_out, said_err = capsys.readouterr()
    assert ended.value.code == 2 and said_out == ""
    assert said_err.startswith(f"error: {said}") and said_err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_command_line_itself_ends_with_status_2(tmp_path):
    command = [sys.executable, "-m", "dropjax.train", "x.safetensors", "--depth", "0"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: recipe: depth: expected at least 1, got 0\n"


def test_the_examples_recipe_makes_its_answer(tmp_path):
    out = tmp_path / "example.safetensors"
    short = ["--rows", "64", "--epochs", "1", "--keep-rows", "32", "--quiet"]
    assert train(["--example", str(out), *short]) == 0
    assert hashlib.sha256((tmp_path / "example-ANSWER.txt").read_bytes()).hexdigest() == training.EXAMPLE_SHA256
    puzzle = load(out)
    assert puzzle.w_in.shape == (48, 96, 48) and len(puzzle.x) == 32
    assert_solved_by(puzzle, answer_in(tmp_path / "example-ANSWER.txt"))


def test_the_shipped_example_is_small_and_learned_its_table():
    path = resources.files("dropjax") / "example.safetensors"
    assert len(path.read_bytes()) < 3_000_000
    with resources.as_file(path) as file:
        puzzle = load(file)
    assert puzzle.w_in.shape == (48, 96, 48) and puzzle.x.shape == (training.EXAMPLE_RECIPE["keep_rows"], 48)
    assert puzzle.true is not None
    assert np.mean((puzzle.pred - puzzle.true) ** 2) < 0.15 * np.var(puzzle.true)
    x, _ = training.generate_table(training.EXAMPLE_RECIPE["table_seed"], training.EXAMPLE_RECIPE["rows"], 48)
    np.testing.assert_allclose(puzzle.x, x[: len(puzzle.x)], atol=1e-4)
