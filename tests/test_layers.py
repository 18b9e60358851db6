"""Attention with MLP of the same layer: scores against plain products, pairs that show, and doubt among neighbours."""

import json

import commands
import numpy as np
from safetensors.numpy import save_file

from dropjax.pairing.layers import pair_layers

L, D, Q, H = 6, 24, 16, 40


def layers(tie: float, smooth: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What attentions write [L, Q, D], and MLPs read and write [L, H, D], on features whose sizes a layer's parts share."""
    rng = np.random.default_rng(seed)
    size = tie * rng.normal(size=(L, D))
    for k in range(1, L):
        size[k] = smooth * size[k - 1] + (1 - smooth**2) ** 0.5 * size[k]
    size = np.exp(size)[:, None]
    writes, reads, back = (rng.normal(size=(L, n, D)) * size for n in (Q, H, H))
    return writes.astype(np.float32), reads.astype(np.float32), back.astype(np.float32)


def test_scores_are_cosines_of_gram_matrices_over_features():
    writes, reads, back = layers(0.5)
    found = pair_layers(writes, reads, back)
    grams = []
    for half in (writes, {"reads": reads, "writes": back}[found.signal]):
        even = half / np.sqrt((half.astype(np.float64) ** 2).mean(axis=(0, 1)))
        whole = np.stack([one.T @ one / np.linalg.norm(one.T @ one) for one in even])
        own = whole - whole.mean(axis=0)
        grams.append(own / np.linalg.norm(own, axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(found.score, np.einsum("ide,jde->ij", *grams), atol=1e-5)


def test_layers_that_show_are_paired_whatever_rotations_their_units_go_through():
    parts = layers(1.0)
    rng = np.random.default_rng(1)
    order = rng.permutation(L)
    turned = [np.linalg.qr(rng.normal(size=(part.shape[1],) * 2))[0].astype(np.float32) @ part for part in parts]
    found = pair_layers(turned[0], turned[1][order], turned[2][order])
    assert found.verdict == "paired"
    np.testing.assert_array_equal(order[found.partner], np.arange(L))


def test_unrelated_layers_have_no_signal_and_weak_ties_leave_doubt():
    assert pair_layers(*layers(0.0)).verdict == "no signal"
    weak = pair_layers(*layers(0.3))
    assert weak.verdict == "doubtful"
    np.testing.assert_array_equal(weak.partner, np.arange(L))


def test_neighbours_that_are_alike_are_never_paired():
    assert not [seed for seed in range(20) if pair_layers(*layers(0.5, smooth=0.9, seed=seed)).verdict == "paired"]


def test_the_command_pairs_attentions_with_mlps(tmp_path):
    writes, reads, back = layers(1.0)
    rng = np.random.default_rng(2)
    arrays = {}
    for k in range(L):
        place = f"model.layers.{k}"
        arrays |= {f"{place}.self_attn.{n}_proj.weight": rng.normal(size=(Q, D)) for n in "qkv"}
        arrays |= {f"{place}.self_attn.o_proj.weight": writes[k].T, f"{place}.mlp.fc1.weight": reads[k]}
        arrays |= {f"{place}.mlp.fc2.weight": back[k].T, f"{place}.mlp.fc1.bias": np.ones(H)}
    save_file({n: np.ascontiguousarray(a.astype(np.float32)) for n, a in arrays.items()}, tmp_path / "a.safetensors")
    options = "--path", "layer", "--check", "--baselines", "--json", str(tmp_path / "a.json")
    done = commands.run("pair", tmp_path / "a.safetensors", *options)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "a.json").read_text())["paths"]["layer"]
    assert (record["verdict"], record["correct"], record["baselines"]["untrained"]["verdict"]) == ("paired", L, "no signal")
    for pair in record["pairs"]:
        assert pair["in"].replace("self_attn.o_proj", "mlp.fc1") == pair["out"]
