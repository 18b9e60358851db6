"""Chains of three convolutions: what is read as one, every score against plain loops, and the verdict."""

import itertools
import json
from pathlib import Path

import commands
import numpy as np
import pytest
from safetensors.numpy import save_file

from dropjax.io import convolutions
from dropjax.io.checkpoints import open_checkpoint
from dropjax.pairing import chains
from dropjax.pairing.chains import Factors, chain

L, H, D = 6, 16, 32


def factors(coupling: float, seed: int = 0, count: int = L) -> Factors:
    """Convolutions whose last is near −(K·W_first)ᵀ, kernels led by their middle tap."""
    rng = np.random.default_rng(seed)
    first, middle = rng.normal(size=(count, H, D)), rng.normal(size=(count, 9, H, H))
    middle[:, 4] *= 3
    last = rng.normal(size=(count, D, H)) - coupling * np.swapaxes(middle.sum(1) @ first, 1, 2)
    gains = rng.normal(size=(2, count, H))
    return Factors(*(a.astype(np.float32) for a in (first, middle, last, gains)))


def fisher(a, b) -> float:
    return np.arctanh(np.corrcoef(a, b)[0, 1])


def plain(f: Factors) -> dict[str, np.ndarray]:
    """`chains.cubes`, by loops over everything."""
    found = {name: np.zeros((len(f.first),) * 3) for name in chains.NAMES if name != chains.TOGETHER}
    assert f.gains is not None
    for i, j, k in itertools.product(range(len(f.first)), repeat=3):
        products = [f.last[k] @ tap @ f.first[i] for tap in f.middle[j]]
        m = sum(products)
        ratio = np.trace(m) / np.linalg.norm(m)
        squares = sum(np.trace(p) ** 2 for p in products) / sum(np.linalg.norm(p) ** 2 for p in products)
        into, out_of = np.linalg.norm(f.first[i], axis=1), np.linalg.norm(f.middle[j], axis=(0, 1))
        behind, away = np.linalg.norm(f.middle[j], axis=(0, 2)), np.linalg.norm(f.last[k], axis=0)
        norms = fisher(into, out_of) + fisher(behind, away)
        sizes = np.abs(f.gains)
        gains = fisher(sizes[0, i], out_of) + fisher(sizes[1, j], away)
        for name, value in zip(found, (abs(ratio), -ratio, ratio, np.sqrt(squares), norms, gains), strict=True):
            found[name][i, j, k] = value
    return found


def test_scores_of_three_are_what_they_say():
    f = factors(0.5, count=4)
    fast, slow = chains.cubes(f), plain(f)
    assert set(fast) == set(slow)
    for name, cube in fast.items():
        np.testing.assert_allclose(cube, slow[name], atol=1e-5, err_msg=name)


def test_the_order_of_inner_channels_changes_no_score():
    f, rng = factors(0.5), np.random.default_rng(1)
    p, q = rng.permutation(H), rng.permutation(H)
    assert f.gains is not None
    gains = np.stack([f.gains[0][:, p], f.gains[1][:, q]])
    other = Factors(f.first[:, p], f.middle[:, :, q][:, :, :, p], f.last[:, :, q], gains)
    for name, cube in chains.cubes(f).items():
        np.testing.assert_allclose(chains.cubes(other)[name], cube, atol=1e-5, err_msg=name)


def test_assignment_of_three_finds_what_all_triples_have_at_best():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cube = rng.normal(size=(4, 4, 4))
        middle, last = rng.permutation(4), rng.permutation(4)
        cube[np.arange(4), middle, last] += 6
        found = chains.assign(cube)
        best = max(
            sum(cube[i, m[i], k[i]] for i in range(4))
            for m in itertools.permutations(range(4))
            for k in itertools.permutations(range(4))
        )
        assert cube[np.arange(4), *found].sum() == pytest.approx(best)
        assert [list(one) for one in found] == [list(middle), list(last)]


def test_chains_that_show_are_found_and_unrelated_ones_are_not():
    f, rng = factors(1.0), np.random.default_rng(2)
    p, q = rng.permutation(L), rng.permutation(L)
    found = chain([f.reordered(np.arange(L), p, q)])
    assert found.verdict == "paired"
    assert (p[found.middle.partner] == np.arange(L)).all()
    assert (q[found.last.partner] == np.arange(L)).all()
    assert chain([factors(0.0)]).verdict == "no signal"
    with pytest.raises(ValueError, match="expected one of"):
        chain([f], ("ddr",))


def test_gains_alone_pair_what_products_do_not():
    f, rng = factors(0.0), np.random.default_rng(4)
    gains = np.exp(rng.normal(size=(2, L, H))).astype(np.float32)
    f = Factors(f.first, f.middle * gains[0][:, None, None], f.last * gains[1][:, None], gains)
    p, q = rng.permutation(L), rng.permutation(L)
    found = chain([f.reordered(np.arange(L), p, q)], ("gains",))
    assert found.verdict == "paired"
    assert (p[found.middle.partner] == np.arange(L)).all()
    assert (q[found.last.partner] == np.arange(L)).all()
    assert chain([f.shuffled(rng)], ("gains",)).verdict == "no signal"
    with pytest.raises(ValueError, match="without normalisations"):
        chain([Factors(f.first, f.middle, f.last)], ("gains",))


def test_one_wrong_chain_among_right_ones_is_not_called_paired():
    f, strange = factors(1.0), factors(0.0, seed=5)
    f.last[:2] = strange.last[:2]
    found = chain([f])
    assert found.verdict != "paired"
    assert (found.middle.certainty[2:] > found.middle.certainty[:2].max()).all()


def network(folder: Path, names: tuple[str, str, str], norms: tuple[str, str, str] | None, groups: int = 1) -> Path:
    f, rng = factors(1.0), np.random.default_rng(3)
    arrays = {}
    for k in range(L):
        kernel = f.middle[k].reshape(3, 3, H, H).transpose(2, 3, 0, 1)
        if groups > 1:
            kernel = np.concatenate([kernel[g * H // groups : (g + 1) * H // groups, : H // groups] for g in range(groups)])
        convolutions_ = f.first[k][:, :, None, None], kernel, f.last[k][:, :, None, None]
        for part, (name, array) in enumerate(zip(names, convolutions_, strict=True)):
            gain = np.ones(len(array))
            if norms:
                gain, variance = np.exp(rng.normal(size=(2, len(array))))
                place = norms[part].replace("#", str(k))
                arrays |= {
                    f"{place}.weight": gain,
                    f"{place}.running_var": variance,
                    f"{place}.bias": gain,
                    f"{place}.running_mean": gain,
                }
                gain = gain / np.sqrt(variance + 1e-5)
            arrays[f"{name.replace('#', str(k))}.weight"] = array / gain[:, None, None, None]
    arrays |= {"conv1.weight": rng.normal(size=(D, 3, 7, 7)), "layer1.0.downsample.0.weight": rng.normal(size=(D, D, 1, 1))}
    save_file({n: np.ascontiguousarray(a.astype(np.float32)) for n, a in arrays.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


NETWORKS = {
    "torchvision": (tuple(f"layer1.#.conv{n}" for n in (1, 2, 3)), tuple(f"layer1.#.bn{n}" for n in (1, 2, 3))),
    "transformers": (
        tuple(f"encoder.layers.#.layer.{n}.convolution" for n in (0, 1, 2)),
        tuple(f"encoder.layers.#.layer.{n}.normalization" for n in (0, 1, 2)),
    ),
    "a sequence": (tuple(f"body.#.{n}" for n in (0, 3, 6)), tuple(f"body.#.{n}" for n in (1, 4, 7))),
    "no normalisations": (tuple(f"layer1.#.conv{n}" for n in (1, 2, 3)), None),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_bottlenecks_are_read_from_public_layouts(tmp_path, kind):
    (found,) = convolutions.find_chains(open_checkpoint(network(tmp_path, *NETWORKS[kind])))
    assert found.shape == (L, 9, H, D)
    assert found.folded == (NETWORKS[kind][1] is not None)
    f = factors(1.0)
    gains = found.gains()
    assert (gains is not None) == found.folded
    if gains is not None:
        assert gains.shape == (2, L, H)
        place = NETWORKS[kind][1][1].replace("#", "2")
        np.testing.assert_array_equal(gains[1, 2], found.checkpoint.read(f"{place}.weight"))
    for read, expected in zip(found.arrays(found.folded), (f.first, f.middle, f.last), strict=True):
        np.testing.assert_allclose(read, expected, rtol=1e-4)


def test_grouped_kernels_are_read_with_zeros_between_groups(tmp_path):
    (found,) = convolutions.find_chains(open_checkpoint(network(tmp_path, *NETWORKS["torchvision"], groups=2)))
    middle, half = found.arrays(True)[1], H // 2
    f = factors(1.0)
    assert not middle[:, :, :half, half:].any()
    np.testing.assert_allclose(middle[:, :, :half, :half], f.middle[:, :, :half, :half], rtol=1e-4)


def test_depthwise_blocks_are_paired_by_what_stands_around_them(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for k in range(3):
        shapes = {"conv_pw": (H, D, 1, 1), "conv_dw": (H, 1, 3, 3), "conv_pwl": (D, H, 1, 1)}
        arrays |= {f"blocks.{k}.{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    found = convolutions.find_depthwise(checkpoint)
    assert found is not None
    assert (found.depth, found.width) == (3, D)
    a, b = found.halves(found.readings[0]).units(0, H)
    np.testing.assert_array_equal(a[1], arrays["blocks.1.conv_pw.weight"][:, :, 0, 0])
    np.testing.assert_array_equal(b[1], arrays["blocks.1.conv_pwl.weight"][:, :, 0, 0].T)
    assert convolutions.find_chains(checkpoint) == []


def test_every_stage_has_a_verdict_and_a_block_alone_of_its_shapes_needs_none(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for stage, (width, inner, count) in enumerate([(D, H, 4), (2 * D, H, 5)]):
        for k in range(count):
            before = D if stage and not k else width
            for n, shape in enumerate([(inner, before, 1, 1), (inner, inner, 3, 3), (width, inner, 1, 1)], 1):
                arrays[f"layer{stage + 1}.{k}.conv{n}.weight"] = rng.normal(size=shape).astype(np.float32)
    save_file(arrays, tmp_path / "a.safetensors")
    found = convolutions.find_chains(open_checkpoint(tmp_path / "a.safetensors"))
    assert [(one.shape, one.folded) for one in found] == [((4, 9, H, D), False), ((4, 9, H, 2 * D), False)]
    assert [one.alone for one in found] == [("layer2.0.conv1.weight",), ()]
    options = "--path", "bottleneck", "--check", "--baselines", "--json", str(tmp_path / "a.json")
    done = commands.run("pair", tmp_path / "a.safetensors", *options)
    assert (done.returncode, done.stderr) == (1, "")
    record = json.loads((tmp_path / "a.json").read_text())["paths"]
    assert list(record) == ["bottleneck", "bottleneck 2"]
    for one in record.values():
        assert (one["verdict"], one["total"], one["baselines"]["untrained"]["verdict"]) == ("no signal", 4, "no signal")
        assert len(one["middle"]["pairs"]) == len(one["last"]["pairs"]) == 4
