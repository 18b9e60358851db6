"""Paths beside MLPs: recognised by public models' names, read as they are stored, and paired by what they leave alone."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dropjax.core.errors import InputError
from dropjax.io import attention, state_spaces
from dropjax.io.checkpoints import open_checkpoint
from dropjax.pairing import heads
from dropjax.pairing.evidence import Arrays
from dropjax.pairing.paths import BY_HEAD, PATHS
from dropjax.pairing.portfolio import portfolio

D, Q, HEAD = 24, 32, 8
HEADS, GROUPS = Q // HEAD, 2
K = GROUPS * HEAD


def projections(seed=0, grouped=False, width=D, coupling=1.0) -> dict[str, np.ndarray]:
    """One layer's query, key and value [rows, d] and output [d, Q], keys near queries, outputs near values."""
    rng = np.random.default_rng(seed)
    rows = K if grouped else Q
    query, key, value = rng.normal(size=(Q, width)), rng.normal(size=(rows, width)), rng.normal(size=(rows, width))
    every = np.arange(Q) // HEAD // (HEADS * HEAD // rows) * HEAD + np.arange(Q) % HEAD
    query += coupling * key[every]
    output = rng.normal(size=(width, Q)) - coupling * value[every].T
    return {"q": query, "k": key, "v": value, "o": output}


def by_head(p) -> np.ndarray:
    """Query, key and value of every group of heads after one another, as GPT-NeoX and Megatron store them."""
    per = HEADS * HEAD // len(p["k"])
    groups = [
        [p[n].reshape(-1, (per if n == "q" else 1) * HEAD, p[n].shape[1])[g] for n in "qkv"]
        for g in range(len(p["k"]) // HEAD)
    ]
    return np.concatenate([np.concatenate(group) for group in groups])


LLAMA = {n: f"model.layers.#.self_attn.{n}_proj.weight" for n in "qkvo"}
LAYOUTS = {
    "Llama": (LLAMA, {}),
    "Llama, grouped": (LLAMA, {"grouped": True}),
    "Llama as published": ({n: f"layers.#.attention.w{n}.weight" for n in "qkvo"}, {}),
    "BERT": (
        {"q": "encoder.layer.#.attention.self.query.weight", "k": "encoder.layer.#.attention.self.key.weight",
         "v": "encoder.layer.#.attention.self.value.weight", "o": "encoder.layer.#.attention.output.dense.weight"}, {}),
    "ViT": (
        {"q": "vit.layer.#.attention.attention.query.weight", "k": "vit.layer.#.attention.attention.key.weight",
         "v": "vit.layer.#.attention.attention.value.weight", "o": "vit.layer.#.attention.output.dense.weight"}, {}),
    "ALBERT, unshared": (
        {"q": "a.#.attention.query.weight", "k": "a.#.attention.key.weight", "v": "a.#.attention.value.weight",
         "o": "a.#.attention.dense.weight"}, {}),
    "Whisper": ({"q": "b.#.attn.query.weight", "k": "b.#.attn.key.weight", "v": "b.#.attn.value.weight",
                 "o": "b.#.attn.out.weight"}, {}),
    "OPT": ({**{n: f"layers.#.self_attn.{n}_proj.weight" for n in "qkv"}, "o": "layers.#.self_attn.out_proj.weight"}, {}),
    "T5": ({n: f"encoder.block.#.layer.0.SelfAttention.{n}.weight" for n in "qkvo"}, {}),
    "DistilBERT": ({**{n: f"layer.#.attention.{n}_lin.weight" for n in "qkv"}, "o": "layer.#.attention.out_lin.weight"}, {}),
    "diffusers": ({**{n: f"b.#.attn1.to_{n}.weight" for n in "qkv"}, "o": "b.#.attn1.to_out.0.weight"}, {}),
    "Conformer": ({**{n: f"l.#.self_attn.linear_{n}.weight" for n in "qkv"}, "o": "l.#.self_attn.linear_out.weight"}, {}),
    "Flax": ({**{n: f"l_#/attention/{w}/kernel" for n, w in zip("qkv", ("query", "key", "value"), strict=True)},
              "o": "l_#/attention/out/kernel"}, {"transposed": True}),
    "GPT-2": ({"qkv": "h.#.attn.c_attn.weight", "o": "h.#.attn.c_proj.weight"}, {"transposed": True, "width": Q}),
    "nanoGPT": ({"qkv": "h.#.attn.c_attn.weight", "o": "h.#.attn.c_proj.weight"}, {"width": Q}),
    "timm": ({"qkv": "blocks.#.attn.qkv.weight", "o": "blocks.#.attn.proj.weight"}, {"width": Q}),
    "CLIP": ({"qkv": "r.#.attn.in_proj_weight", "o": "r.#.attn.out_proj.weight"}, {"width": Q}),
    "Phi-3, grouped": ({"qkv": "l.#.self_attn.qkv_proj.weight", "o": "l.#.self_attn.o_proj.weight"}, {"grouped": True}),
    "GPT-NeoX": ({"by head": "l.#.attention.query_key_value.weight", "o": "l.#.attention.dense.weight"}, {"width": Q}),
    "Megatron, grouped": (
        {"by head": "l.#.self_attention.linear_qkv.weight", "o": "l.#.self_attention.linear_proj.weight"},
        {"grouped": True}),
    "lucidrains": ({"q": "l.#.fn.to_q.weight", "kv": "l.#.fn.to_kv.weight", "o": "l.#.fn.to_out.weight"}, {}),
}  # fmt: skip


def stored(folder: Path, layout: str, count=4, **more) -> tuple[Path, list[dict[str, np.ndarray]]]:
    names, how = LAYOUTS[layout]
    transposed = how.get("transposed", False)
    options = {key: value for key, value in how.items() if key != "transposed"}
    layers = [projections(seed, **(options | more)) for seed in range(count)]
    arrays = {}
    for k, p in enumerate(layers):
        whole = {
            "qkv": np.concatenate([p["q"], p["k"], p["v"]]),
            "kv": np.concatenate([p["k"], p["v"]]),
            "by head": by_head(p),
            **p,
        }
        for part, name in names.items():
            arrays[name.replace("#", str(k))] = whole[part].T if transposed else whole[part]
    arrays["embed.weight"] = np.ones((50, D))
    save_file({n: np.ascontiguousarray(a.astype(np.float32)) for n, a in arrays.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": HEADS}))
    return folder / "model.safetensors", layers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_projections_are_read_from_public_layouts_as_what_they_are(tmp_path, layout):
    path, layers = stored(tmp_path, layout)
    every = np.arange(Q) // HEAD // (Q // len(layers[0]["k"])) * HEAD + np.arange(Q) % HEAD
    for kind, ours, theirs in (("query-key", "q", "k"), ("value-output", "v", "o")):
        found = attention.find(open_checkpoint(path), kind)
        assert found is not None
        assert (found.depth, found.head, found.whole) == (4, HEAD, True)
        reading = found.readings[-1]  # head by head comes second, where it may be so
        a, b = found.halves(reading).units(0, Q)
        for k, p in enumerate(layers):
            expected = p[ours] if ours == "q" else p[ours][every]
            np.testing.assert_allclose(a[k], expected, rtol=1e-6)
            np.testing.assert_allclose(b[k], p[theirs].T if theirs == "o" else p[theirs][every], rtol=1e-6)
        part, _ = found.halves(reading).units(3, 9)
        np.testing.assert_array_equal(part, a[:, 3:9])


@pytest.mark.parametrize("layout", ["Llama, grouped", "GPT-NeoX"])
def test_heads_that_are_needed_and_not_known_are_asked_for(tmp_path, layout):
    path, _ = stored(tmp_path, layout)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="number of heads"):
        attention.find(open_checkpoint(path), "query-key")
    found = attention.find(open_checkpoint(path), "query-key", heads=HEADS)
    assert found is not None
    assert found.head == HEAD
    with pytest.raises(InputError, match="divides"):
        attention.find(open_checkpoint(path), "query-key", heads=5)


def test_a_single_heads_normalisation_tells_its_size(tmp_path):
    path, layers = stored(tmp_path, "Llama")
    (tmp_path / "config.json").write_text("nonsense")
    arrays = {LLAMA[n].replace("#", str(k)): p[n] for k, p in enumerate(layers) for n in "qkvo"}
    arrays["model.layers.0.self_attn.q_norm.weight"] = np.ones(HEAD)
    save_file({n: np.ascontiguousarray(a.astype(np.float32)) for n, a in arrays.items()}, path)
    found = attention.find(open_checkpoint(path), "query-key")
    assert found is not None
    assert found.head == HEAD


def test_what_is_incomplete_unread_or_of_another_shape_is_told(tmp_path):
    _, layers = stored(tmp_path, "Llama")
    arrays = {LLAMA[n].replace("#", str(k)): p[n] for k, p in enumerate(layers) for n in "qkvo"}
    del arrays[LLAMA["k"].replace("#", "3")]
    wider = projections(9, width=2 * D)
    arrays |= {LLAMA[n].replace("#", "7"): wider[n] for n in "qkvo"}
    arrays = {n: np.ascontiguousarray(a.astype(np.float32)) for n, a in arrays.items()}
    arrays[LLAMA["q"].replace("#", "8")] = np.ones((Q, D), np.int8)
    save_file(arrays, tmp_path / "other.safetensors")
    found = attention.find(open_checkpoint(tmp_path / "other.safetensors"), "query-key")
    assert found is not None
    assert (found.depth, len(found.others), len(found.incomplete), len(found.unreadable)) == (3, 1, 1, 1)
    assert not found.whole
    assert found.limits == ", for the chosen ones only (1 not read, 1 incomplete, 1 of other shapes)"
    assert [line.split(":")[0] for line in found.lines()[2:5]] == ["not read", "incomplete", "also there, of other shapes"]


def test_where_nothing_tells_how_square_matrices_are_stored_every_way_is_tried(tmp_path):
    arrays = {}
    for k in range(6):
        p = projections(k, width=Q)
        for n in "qkv":
            arrays[f"l.{k}.attn.{n}_proj_weight"] = p[n].T
        arrays[f"l.{k}.attn.out_proj.weight"] = p["o"]
    save_file({n: np.ascontiguousarray(a.astype(np.float32)) for n, a in arrays.items()}, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    for kind in ("query-key", "value-output"):
        found = attention.find(checkpoint, kind)
        assert found is not None
        assert len(found.readings) == 2
        wrong, right = (portfolio(found.halves(reading), tries=2) for reading in found.readings)
        assert right.verdict == "paired"
        assert (right.partner == np.arange(6)).all()
        if kind == "value-output":  # a query like its key is so by rows as by columns
            assert right.separations[right.signal] > wrong.separations[wrong.signal]
    told = attention.find(checkpoint, "query-key", transposed=True)
    assert told is not None
    assert len(told.readings) == 1


@pytest.mark.parametrize(("gate", "start"), [(False, 0), (True, 40)])
def test_state_spaces_are_read(tmp_path, gate, start):
    rng = np.random.default_rng(0)
    arrays = {}
    for k in range(3):
        arrays |= {
            f"layers.{k}.mixer.in_proj.weight": rng.normal(size=(80, D)),
            f"layers.{k}.mixer.out_proj.weight": rng.normal(size=(D, 40)),
        }
        arrays |= {
            f"layers.{k}.mixer.A_log": rng.normal(size=(40, 4)),
            f"layers.{k}.mixer.x_proj.weight": rng.normal(size=(9, 40)),
        }
    arrays = {n: np.ascontiguousarray(a.astype(np.float32)) for n, a in arrays.items()}
    save_file(arrays, tmp_path / "a.safetensors")
    found = state_spaces.find(open_checkpoint(tmp_path / "a.safetensors"), "state-space gate" if gate else "state-space")
    assert found is not None
    assert (found.depth, found.width) == (3, D)
    a, b = found.halves(found.readings[0]).units(0, 40)
    np.testing.assert_array_equal(a[1], arrays["layers.1.mixer.in_proj.weight"][start : start + 40])
    np.testing.assert_array_equal(b[1], arrays["layers.1.mixer.out_proj.weight"].T)
    no_state = {n: a for n, a in arrays.items() if "A_log" not in n and "x_proj" not in n}
    save_file(no_state, tmp_path / "b.safetensors")
    assert state_spaces.find(open_checkpoint(tmp_path / "b.safetensors"), "state-space") is None


# Signals of heads


def plain_heads(a, b, size) -> dict[str, np.ndarray]:
    """`heads.Heads`, by loops over everything, as means."""
    count = len(a)
    found = {name: np.zeros((count, count)) for name in heads.NAMES}
    for i, j in itertools.product(range(count), repeat=2):
        for start in range(0, a.shape[1], size):
            x, y = a[i, start : start + size], b[j, start : start + size]
            m = y.T @ x
            norm = np.linalg.norm(m) ** 2
            found["head_traces"][i, j] += np.trace(m) ** 2 / norm
            found["head_symmetry"][i, j] += np.trace(m @ m) / norm
            found["head_gram"][i, j] += norm / (np.linalg.norm(x @ x.T) * np.linalg.norm(y @ y.T))
    return {name: table * size / a.shape[1] for name, table in found.items()}


@pytest.mark.parametrize("memory", [1 << 30, 3000])
def test_head_signals_are_what_they_say(memory):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 12, 5)).astype(np.float32)
    halves = Arrays(a, np.swapaxes(b, 1, 2))
    scores = heads.head_scores(halves, 4, 3, memory=memory)
    for name, table in plain_heads(a, b, 4).items():
        np.testing.assert_allclose(scores[name][0], table, rtol=1e-4)
        assert len(scores[name]) == 4
        assert not np.allclose(scores[name][1], table, rtol=1e-2)


def test_a_heads_size_is_what_divides():
    assert [heads.head_size(*args) for args in ((384, 0), (30, 0), (37, 0), (96, 12))] == [32, 30, 1, 12]
    with pytest.raises(ValueError, match="divides"):
        heads.head_size(96, 7)


def rotated(a, b, size, rng):
    """Every head's units rotated, in both halves of a layer alike."""
    turned = []
    turns = np.linalg.qr(rng.normal(size=(len(a), a.shape[1] // size, size, size)))[0]
    for half in (a, b):
        split = half.reshape(len(half), -1, size, half.shape[2])
        turned.append(np.einsum("lhef,lhfd->lhed", turns, split).reshape(half.shape).astype(np.float32))
    return turned


def test_rotations_within_heads_leave_alone_what_the_table_says():
    rng = np.random.default_rng(1)
    layers = [projections(k, width=20) for k in range(6)]
    a, b = (np.stack([p[n] for p in layers]).astype(np.float32) for n in "qk")
    x, y = rotated(a, b, HEAD, rng)
    before, after = (heads.head_scores(Arrays(p, np.swapaxes(q, 1, 2)), HEAD, 3) for p, q in ((a, b), (x, y)))
    for name in BY_HEAD:
        own, turned = np.diag(before[name][0]), np.diag(after[name][0])
        np.testing.assert_allclose(own, turned, rtol=1e-3)
    for p, q in ((a, b), (x, y)):
        halves = Arrays(p, np.swapaxes(q, 1, 2))
        found = portfolio(halves, extra=heads.head_signals(halves, HEAD))
        assert found.verdict == "paired"
        assert (found.partner == np.arange(6)).all()
    assert set(BY_HEAD) == set(heads.NAMES) <= set(PATHS["query-key"].blind)


def test_unrelated_heads_have_no_signal():
    rng = np.random.default_rng(2)
    halves = Arrays(rng.normal(size=(8, 32, 20)).astype(np.float32), rng.normal(size=(8, 20, 32)).astype(np.float32))
    found = portfolio(halves, extra=heads.head_signals(halves, HEAD))
    assert found.verdict == "no signal"
    assert set(heads.NAMES) <= set(found.separations)
    with pytest.raises(ValueError, match="expected one of"):
        portfolio(halves, ("head_traces",))
