"""Where layers come from: likeness against plain loops, every change that leaves an origin, and foreign layers."""

import json
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
from safetensors.numpy import save_file

from dropjax.pairing.evidence import Arrays
from dropjax.pairing.origins import likeness, origins, trace

L, H, D, SIZE = 6, 48, 20, 4


def layers(seed: int, count: int = L) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = np.exp(0.5 * rng.normal(size=D))
    a, b = rng.normal(size=(2, count, H, D)) * shared
    return a.astype(np.float32), b.astype(np.float32)


def halves(a, b) -> Arrays:
    return Arrays(a.astype(np.float32), np.ascontiguousarray(np.swapaxes(b, 1, 2).astype(np.float32)))


@pytest.mark.parametrize("size", [1, SIZE])
@pytest.mark.parametrize("memory", [1 << 30, 20_000])
def test_likeness_is_the_mean_of_the_largest_cosines_of_blocks(size, memory):
    (a, b), (x, y) = layers(0, 2), layers(1, 3)
    found, shuffled = likeness(halves(a, b), halves(x, y), size, memory=memory)
    slow = np.zeros((2, 3))
    for i in range(2):
        for j in range(3):
            blocks = [
                [q[k : k + size].T @ p[k : k + size] for k in range(0, H, size)] for p, q in ((a[i], b[i]), (x[j], y[j]))
            ]
            mine, theirs = ([m / np.linalg.norm(m) for m in of] for of in blocks)
            slow[i, j] = np.mean([max((m * t).sum() for t in theirs) for m in mine])
    np.testing.assert_allclose(found, slow, rtol=1e-4)
    assert shuffled.shape == found.shape
    assert not np.allclose(shuffled, slow, rtol=1e-3)


def permuted(a, b, rng):
    order = rng.permutation(H // SIZE)[:, None] * SIZE + np.arange(SIZE)
    return a[:, order.ravel()], b[:, order.ravel()]


def rescaled(a, b, rng):
    c = np.exp(rng.normal(size=(len(a), H, 1)))
    return a * c, b / c


def rotated(a, b, rng):
    """Within heads."""
    turn = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    return tuple(np.einsum("ef,lhfd->lhed", turn, p.reshape(len(p), -1, SIZE, D)).reshape(p.shape) for p in (a, b))


def tuned(a, b, rng):
    return tuple(p + 0.3 * rng.normal(size=p.shape) for p in (a, b))


def quantised(a, b, rng):
    del rng
    steps = [np.abs(p).max() / 127 for p in (a, b)]
    return tuple(np.round(p / step) * step for p, step in zip((a, b), steps, strict=True))


@pytest.mark.parametrize("change", [permuted, rescaled, rotated, tuned, quantised])
def test_what_becomes_of_a_layer_leaves_its_origin(change):
    a, b = layers(0)
    plan = np.array([0, 1, 1, 2, 5])
    x, y = change(a[plan], b[plan], np.random.default_rng(3))
    found = trace(halves(x, y), halves(a, b), 1 if change in (rescaled, tuned) else SIZE)
    assert found.verdict == "traced"
    np.testing.assert_array_equal(found.best, plan)


def test_foreign_layers_have_no_origin_and_mixed_ones_in_part():
    (a, b), (x, y) = layers(0), layers(1)
    assert trace(halves(x, y), halves(a, b)).verdict == "none"
    mixed = trace(halves(np.concatenate([a[3:5], x[:2]]), np.concatenate([b[3:5], y[:2]])), halves(a, b))
    assert (mixed.verdict, mixed.verdicts) == ("in part", ["from", "from", "none", "none"])
    assert list(mixed.best[:2]) == [3, 4]


def test_two_layers_that_are_the_same_leave_doubt():
    a, b = layers(0)
    a[4], b[4] = a[2], b[2]
    found = trace(halves(a, b), halves(a, b))
    assert found.verdicts == ["from", "from", "doubtful", "from", "doubtful", "from"]


def test_unrelated_scores_seldom_seem_related():
    rng = np.random.default_rng(0)
    verdicts = []
    for shape in [(12, 12), (6, 4), (3, 3), (5, 1), (2, 2)] * 60:
        rows = rng.normal(size=(shape[0], 1))
        verdicts.append(origins(rng.normal(size=shape) + rows, rng.normal(size=shape)).verdict)
    assert verdicts.count("none") >= 0.97 * len(verdicts)


def test_layers_of_other_widths_are_refused():
    a, b = layers(0)
    with pytest.raises(ValueError, match="same d"):
        trace(halves(a, b), halves(a[..., :9], b[..., :9]))
    with pytest.raises(ValueError, match="divide"):
        trace(halves(a, b), halves(a, b), 7)


# The command


def written(path: Path, a, b) -> Path:
    arrays = {}
    for k, (p, q) in enumerate(zip(a, b, strict=True)):
        arrays |= {
            f"layers.{k}.mlp.fc1.weight": p,
            f"layers.{k}.mlp.fc2.weight": q.T,
            f"layers.{k}.mlp.fc1.bias": np.ones(H),
        }
    save_file({n: np.ascontiguousarray(x.astype(np.float32)) for n, x in arrays.items()}, path)
    return path


run = partial(commands.run, "trace")


def test_a_merge_of_two_fine_tuned_copies_gives_back_its_layer_list(tmp_path):
    a, b = layers(0)
    rng = np.random.default_rng(5)
    copies = [tuned(a, b, rng) for _ in range(2)]
    plan = [(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (1, 4), (0, 4), (1, 5)]
    x, y = (np.stack([copies[copy][side][k] for copy, k in plan]) for side in (0, 1))
    merge = written(tmp_path / "merge.safetensors", *quantised(*permuted(*rescaled(x, y, rng), rng), rng))
    base, foreign = written(tmp_path / "base.safetensors", a, b), written(tmp_path / "foreign.safetensors", *layers(9))
    done = run(merge, base, "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["verdict"] == "traced"
    assert [one["origin"] for one in record["paths"]["in-out"]["layers"]] == [f"layers.{k}.mlp.fc1.weight" for _, k in plan]
    other = run(merge, foreign, "--quiet")
    assert (other.returncode, other.stdout.split()[1::2]) == (1, ["none"] * 8)
    narrow = written(tmp_path / "narrow.safetensors", a[..., :10], b[..., :10])
    assert "none: A has d = 20, B d = 10" in run(merge, narrow).stdout
    assert "B has no such path" in run(merge, written_attention(tmp_path / "attention.safetensors")).stdout


def written_attention(path: Path) -> Path:
    rng = np.random.default_rng(0)
    names = [f"l.{k}.attn.{n}_proj.weight" for k in range(3) for n in "qkvo"]
    save_file({name: rng.normal(size=(D, D)).astype(np.float32) for name in names}, path)
    return path


def test_what_is_wrong_takes_one_line(tmp_path):
    path = written(tmp_path / "a.safetensors", *layers(0))
    save_file({"a": np.ones((3, 4), np.float32)}, tmp_path / "b.safetensors")
    for arguments, words in {
        (tmp_path / "nowhere.pth", path): "nothing there",
        (tmp_path / "b.safetensors", path): "at least 2",
        (path, path, "--heads", "0"): "at least 1",
        (path,): "required",
    }.items():
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
