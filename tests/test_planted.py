import numpy as np
import pytest
from jax import numpy as jnp

from dropjax.core.errors import InputError
from dropjax.core.stack import Stack, replay
from dropjax.io.loading import load
from dropjax.make import planted, training
from dropjax.runtime import device
from dropjax.train.__main__ import main as train


def reference(stack: Stack, x: np.ndarray) -> planted.Difficulty:
    """The definitions, one pair after another."""
    w_in, w_out = np.asarray(stack.w_in, float), np.asarray(stack.w_out, float)
    depth = range(stack.depth)
    ratio = np.array([[abs(np.trace(m := w_out[j] @ w_in[i])) / np.linalg.norm(m) for j in depth] for i in depth])
    norms = np.linalg.norm(w_out, axis=(1, 2))
    pairs = [(i, j) for i in depth for j in depth if i < j]
    before = replay(stack, x)
    effects = []
    for k in depth[:-1]:
        order = np.array(depth)
        order[[k, k + 1]] = order[[k + 1, k]]
        swapped = stack.arranged(jnp.stack([jnp.asarray(order)] * 2, axis=1))
        effects.append(np.sqrt(np.mean((replay(swapped, x) - before) ** 2)))
    return planted.Difficulty(
        right=(np.diag(ratio).min(), np.diag(ratio).max()),
        wrong=ratio[~np.eye(len(depth), dtype=bool)].max(),
        seed_order="w_out_norm ascending",
        inverted=float(np.mean([norms[i] > norms[j] for i, j in pairs])),
        smallest_effect=min(effects),
        noise=0,
    )


def test_a_planted_stack_is_as_hard_as_the_real_puzzle():
    x, _ = training.generate_table(0, 300, 48)
    found = planted.measure(planted.plant(np.random.default_rng(1), 48, x), x)
    assert found.right[0] > 1.8 and found.right[1] < 3.3
    assert found.wrong < 0.6
    assert 0.04 <= found.inverted <= 0.08
    assert found.margin > 10


@pytest.mark.parametrize("activation", ["relu", pytest.param("gelu", marks=pytest.mark.slow)])
def test_the_difficulty_is_as_defined(activation):
    x, _ = training.generate_table(0, 120, 24)
    stack = planted.plant(np.random.default_rng(2), 9, x, 60, outputs=2, activation=activation)
    found, expected = planted.measure(stack, x), reference(stack, x)
    assert stack.activation == activation and stack.w_last.shape == (2, 24)
    np.testing.assert_allclose(found.right, expected.right, rtol=1e-5)
    np.testing.assert_allclose(found.wrong, expected.wrong, rtol=1e-4)
    np.testing.assert_allclose(found.smallest_effect, expected.smallest_effect, rtol=1e-3)
    assert found.inverted <= expected.inverted + 1e-12 <= planted.INVERTED + 2e-12
    assert 0 < found.noise < 1e-5


def test_the_inverted_part_counts_pairs():
    assert planted.inverted(np.array([1.0, 2.0, 3.0])) == 0
    assert planted.inverted(np.array([3.0, 2.0, 1.0])) == 1
    assert planted.inverted(np.array([1.0, 3.0, 2.0])) == pytest.approx(1 / 3)
    assert planted.inverted(np.array([1.0])) == 0


def test_a_width_without_such_ratios_is_refused():
    with pytest.raises(InputError, match=r"expected a width that allows ratios up to 2\.97, got one up to 1\.56"):
        planted.plant(np.random.default_rng(0), 4, np.zeros((3, 4), np.float32), hidden=8)


def test_the_command_plants(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(device, "configure", lambda: None)
    out = tmp_path / "planted.safetensors"
    arguments = ["--planted", "--depth", "12", "--width", "24", "--hidden", "60", "--rows", "90"]
    assert train([str(out), *arguments]) == 0
    puzzle = load(out)
    answer = [int(n) for n in (tmp_path / "planted-ANSWER.txt").read_text().split(",")]
    assert puzzle.true is None and puzzle.x.shape == (90, 24)
    stack = puzzle.stack().arranged(jnp.asarray(puzzle.arrangement(answer)))
    np.testing.assert_allclose(replay(stack, puzzle.x), puzzle.pred, atol=1e-5)
    said = capsys.readouterr().out
    assert "right pairs' ratios" in said and "% of the pairs inverted" in said and "times float32 noise" in said
