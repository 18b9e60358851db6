"""Halves are found by shape or by name, read a part at a time, and never anything unsafe."""

import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from dropjax.core.errors import InputError
from dropjax.io.checkpoints import open_checkpoint
from dropjax.io.halves import find_halves, true_partners

L, D, H = 3, 4, 6


def weights(transposed=False, gated=False, dtype: type = np.float32, biases=True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {"embed.weight": rng.normal(size=(11, D)), "head.norm.weight": rng.normal(size=D)}
    for k in range(L):
        names = {"gate_proj": (H, D), "up_proj": (H, D), "down_proj": (D, H)} if gated else {"fc1": (H, D), "fc2": (D, H)}
        for name, shape in {"attn": (D, D), **names}.items():
            stored = shape[::-1] if transposed else shape
            arrays[f"layers.{k}.mlp.{name}.weight"] = rng.normal(size=stored)
            if biases:
                arrays[f"layers.{k}.mlp.{name}.bias"] = rng.normal(size=shape[0])
        arrays[f"layers.{k}.norm.weight"] = rng.normal(size=D)
    return {name: np.ascontiguousarray(array.astype(dtype)) for name, array in arrays.items()}


def saved(folder: Path, arrays) -> Path:
    save_file(arrays, folder / "model.safetensors")
    return folder / "model.safetensors"


def stacked(arrays, name, transposed=False) -> np.ndarray:
    whole = np.stack([arrays[f"layers.{k}.mlp.{name}.weight"].astype(np.float32) for k in range(L)])
    return whole.swapaxes(1, 2) if transposed else whole


def refused(path: Path, *args, **options) -> str:
    with pytest.raises(InputError) as caught:
        find_halves(open_checkpoint(path), *args, **options).halves("in", "out").units(0, 2)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_halves_are_found_by_shape_and_read_in_parts(tmp_path, transposed, dtype):
    arrays = weights(transposed, dtype=dtype)
    mlps = find_halves(open_checkpoint(saved(tmp_path, arrays)))
    halves = mlps.halves("in", "out")
    assert halves.shape == (L, H, D)
    a, b = halves.units(2, 5)
    np.testing.assert_array_equal(a, stacked(arrays, "fc1", transposed)[:, 2:5])
    np.testing.assert_array_equal(b, stacked(arrays, "fc2", transposed).swapaxes(1, 2)[:, 2:5])
    assert a.dtype == b.dtype == np.float32


def test_transposed_weights_without_biases_are_told_by_the_option_or_by_normalisations(tmp_path):
    arrays = weights(transposed=True, biases=False)
    checkpoint = open_checkpoint(saved(tmp_path, arrays))
    for told in (None, True):
        a, _ = find_halves(checkpoint, transposed=told).halves("in", "out").units(0, H)
        np.testing.assert_array_equal(a, stacked(arrays, "fc1", True))
    assert find_halves(checkpoint).account.layout == "normalisations"
    bare = open_checkpoint(saved(tmp_path, {name: a for name, a in arrays.items() if "norm" not in name}))
    mlps = find_halves(bare)
    assert (mlps.sides["in"].names[0], mlps.account.layout) == ("layers.0.mlp.fc1.weight", "")
    assert find_halves(bare, transposed=True).hidden == H


def test_halves_are_found_by_name(tmp_path):
    arrays = weights()
    arrays |= {f"vision.{k}.fc{n}.weight": np.zeros(s, np.float32) for k in range(5) for n, s in ((1, (9, 2)), (2, (2, 9)))}
    checkpoint = open_checkpoint(saved(tmp_path, arrays))
    assert find_halves(checkpoint).hidden == 9
    assert len(find_halves(checkpoint).others) == 1
    mlps = find_halves(checkpoint, "*.mlp.fc1.weight", "*.mlp.fc2.weight")
    assert (mlps.hidden, mlps.width) == (H, D)
    assert mlps.sides["in"].names == tuple(f"layers.{k}.mlp.fc1.weight" for k in range(L))


def test_gated_mlps_have_three_sides(tmp_path):
    arrays = weights(gated=True)
    mlps = find_halves(open_checkpoint(saved(tmp_path, arrays)))
    assert set(mlps.sides) == {"gate", "up", "out"}
    a, b = mlps.halves("gate", "up").units(0, H)
    np.testing.assert_array_equal(a, stacked(arrays, "gate_proj"))
    np.testing.assert_array_equal(b, stacked(arrays, "up_proj"))
    named = find_halves(mlps.checkpoint, "*up_proj.weight", "*down_proj.weight", "*gate_proj.weight")
    assert named.sides == mlps.sides


def test_fused_gates_are_two_halves_of_one_tensor(tmp_path):
    arrays = weights(gated=True, biases=False)
    for k in range(L):
        gate, up = (arrays.pop(f"layers.{k}.mlp.{name}.weight") for name in ("gate_proj", "up_proj"))
        arrays[f"layers.{k}.mlp.gate_up.weight"] = np.concatenate([gate, up])
    plain = weights(gated=True, biases=False)
    halves = find_halves(open_checkpoint(saved(tmp_path, arrays))).halves("up", "out")
    assert halves.shape == (L, H, D)
    np.testing.assert_array_equal(halves.units(1, H)[0], stacked(plain, "up_proj")[:, 1:])


def test_gains_are_folded_in_on_request(tmp_path):
    arrays = weights()
    mlps = find_halves(open_checkpoint(saved(tmp_path, arrays)), gains="layers.*.norm.weight")
    gains = np.stack([arrays[f"layers.{k}.norm.weight"] for k in range(L)])
    np.testing.assert_allclose(mlps.halves("in", "out").units(0, H)[0], stacked(arrays, "fc1") * gains[:, None])
    assert "one gain for each" in refused(mlps.checkpoint.path, gains="*norm.weight")
    assert "got none" in refused(mlps.checkpoint.path, gains="nothing")


def test_reordering_carries_everything_along(tmp_path):
    mlps = find_halves(open_checkpoint(saved(tmp_path, weights())), gains="layers.*.norm.weight")
    side = mlps.sides["in"].reordered(np.array([2, 0, 1]))
    assert side.names[0] == "layers.2.mlp.fc1.weight"
    assert side.gains[0] == "layers.2.norm.weight"


def test_shards_are_read_through_their_index(tmp_path):
    arrays = weights()
    names = list(arrays)
    home = {name: f"model-{k % 2}.safetensors" for k, name in enumerate(names)}
    for shard in set(home.values()):
        save_file({name: arrays[name] for name in names if home[name] == shard}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": home}))
    a, _ = find_halves(open_checkpoint(index)).halves("in", "out").units(0, H)
    np.testing.assert_array_equal(a, stacked(arrays, "fc1"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "weight_map"),
        ('{"weight_map": 3}', "weight_map"),
        ('{"weight_map": {"a": "../secret"}}', "files beside it"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "nothing there"),
    ],
)
def test_bad_indices_are_refused(tmp_path, text, words):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    assert words in refused(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_pth_files_are_read(tmp_path, wrapper, dtype):
    arrays = weights()
    state: dict = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "model.pth")
    _, b = find_halves(open_checkpoint(tmp_path / "model.pth")).halves("in", "out").units(1, 4)
    rounded = torch.from_numpy(stacked(arrays, "fc2")).to(dtype).float().numpy()
    np.testing.assert_array_equal(b, rounded.swapaxes(1, 2)[:, 1:4])


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil"),)


def test_nothing_in_a_pth_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc1.weight": Evil()}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"fc1.weight": Evil()}))
    for name in ("zip.pth", "bare.pth"):
        refused(tmp_path / name)
    assert not (tmp_path / "evil").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    assert "nothing there" in refused(tmp_path / "nowhere.safetensors")
    assert "something else" in refused(tmp_path)
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(b"<html>no</html>")
        refused(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name)
    path = saved(tmp_path, weights())
    path.write_bytes(path.read_bytes()[:-9])
    assert "cut short" in refused(path)


def test_numbers_that_are_none_are_refused_by_name(tmp_path):
    arrays = weights()
    arrays["layers.1.mlp.fc2.weight"][0, 0] = np.nan
    assert "layers.1.mlp.fc2.weight: expected finite" in refused(saved(tmp_path, arrays))
    huge = weights(dtype=np.float64)
    huge["layers.1.mlp.fc1.weight"][0, 0] = 1e300
    assert "got inf" in refused(saved(tmp_path, huge))


def test_halves_that_do_not_fit_are_refused(tmp_path):
    arrays = weights()
    path = saved(tmp_path, arrays)
    assert "both halves" in refused(path, "*fc1.weight")
    assert "there are" in refused(path, "*nothing*", "*fc2.weight")
    assert "as many input as output" in refused(path, "*fc1.weight", "layers.[01].mlp.fc2.weight")
    assert "to go with" in refused(path, "*attn.weight", "*fc2.weight")
    assert "at least 2" in refused(path, "layers.0.mlp.fc1.weight", "layers.0.mlp.fc2.weight")
    save_file({"a.weight": np.zeros((3, 2), np.float32)}, path)
    assert "as many matrices" in refused(path)


def test_partners_share_the_longest_beginning():
    assert true_partners(["a.0.x", "a.1.x"], ["a.1.y", "a.0.y"]) == [1, 0]
    assert true_partners(["a.0.x", "a.1.x"], ["b.1.y", "b.0.y"]) is None
    assert true_partners(["a.0.x", "a.1.x"], ["a.0.y", "a.0.z"]) is None
    assert true_partners(["a.10.x", "a.1.x"], ["a.1.y", "a.10.y"]) == [1, 0]


def test_names_may_hold_any_digits(tmp_path):
    renamed = {name.replace("layers.1", f"layers.{'9' * 5000}"): a for name, a in weights().items()}
    renamed = {name.replace("layers.2", "layers.10²"): a for name, a in renamed.items()}
    names = find_halves(open_checkpoint(saved(tmp_path, renamed))).sides["in"].names
    assert [name[:9] for name in names] == ["layers.0.", "layers.10", "layers.99"]


def test_a_file_may_hold_each_layer_as_a_state_dict_of_its_own(tmp_path):
    arrays = weights()
    layers = {name.rpartition(".")[0] for name in arrays if ".fc" in name}
    nested = {n: {k: torch.tensor(arrays[f"{n}.{k}"]) for k in ("weight", "bias")} for n in sorted(layers)}
    torch.save({"model": nested, "optimizer": {"state": {}}}, tmp_path / "model.pth")
    checkpoint = open_checkpoint(tmp_path / "model.pth")
    a, _ = find_halves(checkpoint).halves("in", "out").units(0, H)
    np.testing.assert_array_equal(a, stacked(arrays, "fc1"))


def test_a_view_that_repeats_its_storage_is_not_read(tmp_path):
    state = {name: torch.tensor(a) for name, a in weights().items()}
    torch.save({**state, "huge.weight": torch.zeros(1).expand(10**7, 10**7)}, tmp_path / "model.pth")
    checkpoint = open_checkpoint(tmp_path / "model.pth")
    assert "huge.weight" not in checkpoint.shapes
    assert checkpoint.types["huge.weight"] == "float32"
    find_halves(checkpoint)


# Indices


def indexed(folder: Path, shards: dict[str, dict[str, np.ndarray]], home: dict[str, str]) -> Path:
    end = ".bin" if next(iter(shards)).endswith(".bin") else ".safetensors"
    for shard, arrays in shards.items():
        if end == ".bin":
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / shard)
        else:
            save_file(arrays, folder / shard)
    path = folder / f"model{end}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": home}))
    return path


@pytest.mark.parametrize("end", ["bin", "safetensors"])
@pytest.mark.parametrize("chosen", [0, 1])
def test_an_index_decides_which_shard_holds_a_name_that_several_have(tmp_path, end, chosen):
    right, wrong = weights(), {name: array + 1 for name, array in weights().items()}
    shards = [f"model-{k}.{end}" for k in range(2)]
    more = {"stray.weight": np.ones((2, 2), np.float32)}
    held = {shards[chosen]: right, shards[1 - chosen]: wrong | more}
    kept = dict.fromkeys(right, shards[chosen]) | {"embed.weight": shards[1 - chosen]}
    checkpoint = open_checkpoint(indexed(tmp_path, held, kept))
    a, _ = find_halves(checkpoint).halves("in", "out").units(0, H)
    np.testing.assert_array_equal(a, stacked(right, "fc1"))
    np.testing.assert_array_equal(checkpoint.read("embed.weight"), wrong["embed.weight"])
    assert "stray.weight" not in checkpoint.types
    assert any("1 tensor in" in note and "stray.weight" in note for note in checkpoint.notes)
    assert any(f"{len(right)} tensors" in note and "another shard" in note for note in checkpoint.notes)


@pytest.mark.parametrize("end", ["bin", "safetensors"])
def test_a_tensor_that_is_not_where_the_index_says_is_named(tmp_path, end):
    arrays, shard, other = weights(), f"model-0.{end}", f"model-1.{end}"
    home = dict.fromkeys(arrays, shard) | {"layers.1.mlp.fc2.weight": other}
    path = indexed(tmp_path, {shard: arrays, other: {"a.weight": np.ones((2, 3), np.float32)}}, home)
    assert f"expected layers.1.mlp.fc2.weight in {other}" in refused(path)
    path = indexed(tmp_path, {shard: arrays}, dict.fromkeys(arrays, shard) | {"gone.weight": shard})
    assert f"expected gone.weight in {shard}" in refused(path)


@pytest.mark.parametrize(
    "home", ["../model.safetensors", "/etc/passwd", "..", "", "a\\b", "a\0b", "model.safetensors.index.json", 3]
)
def test_an_index_names_shards_beside_it_and_nothing_else(tmp_path, home):
    path = tmp_path / "model.safetensors.index.json"
    save_file(weights(), tmp_path.parent / "model.safetensors")
    path.write_text(json.dumps({"weight_map": {"a": home}}))
    assert "weight_map" in refused(path)


def test_a_shard_by_itself_is_said_to_be_one_of_several(tmp_path):
    save_file(weights(), tmp_path / "model-00001-of-00003.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model-00001-of-00003.safetensors")
    assert checkpoint.notes == ("not looked at: the other shards of 3, of which model-00001-of-00003.safetensors is one",)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json names them all" in open_checkpoint(checkpoint.path).notes[0]


def test_a_second_state_dict_beside_the_first_is_said(tmp_path):
    state = {name: torch.tensor(array) for name, array in weights().items()}
    torch.save({"model": state, "model_ema": dict(state), "epoch": 3, "args": {"lr": 1}}, tmp_path / "model.pth")
    checkpoint = open_checkpoint(tmp_path / "model.pth")
    assert checkpoint.notes == (f"not looked at: {len(state)} tensors under 'model_ema', beside the state dict",)


# Float8


def float8(path: Path, scales: dict[str, torch.Tensor], weight: torch.Tensor, kind=torch.float8_e4m3fn) -> Path:
    stored = {"a.fc1.weight": weight.to(kind), "b.norm.weight": torch.ones(3)} | scales
    if path.suffix == ".safetensors":
        save_torch(stored, path)
    else:
        torch.save(stored, path)
    return path


@pytest.mark.parametrize("end", ["safetensors", "pth"])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("name", "shape", "blocks"),
    [
        ("a.fc1.scale_weight", (), (200, 96)),
        ("a.fc1.weight_scale", (1,), (200, 96)),
        ("a.fc1.weight_scale", (200,), (1, 96)),
        ("a.fc1.weight_scale", (200, 1), (1, 96)),
        ("a.fc1.weight.scale", (1, 96), (200, 1)),
        ("a.fc1.weight_scale_inv", (2, 1), (128, 96)),
        ("a.fc1.weight_scale_inv", (4, 2), (64, 64)),
        ("a.fc1.scale", (200, 3), (1, 32)),
        ("a.fc1.weight_scale_inv", (40, 3), (5, 32)),
    ],
)
def test_float8_is_read_with_its_scales(tmp_path, end, kind, name, shape, blocks):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 96, generator=generator).to(kind)
    scale = torch.rand(shape, generator=generator) + 0.5
    spread = np.kron(scale.reshape([-(-n // b) for n, b in zip((200, 96), blocks, strict=True)]).numpy(), np.ones(blocks))
    expected = weight.to(torch.float32).numpy() * spread[:200, :96].astype(np.float32)
    checkpoint = open_checkpoint(float8(tmp_path / f"model.{end}", {name: scale}, weight, kind))
    assert checkpoint.scales["a.fc1.weight"] == (name, *blocks)
    np.testing.assert_array_equal(checkpoint.read("a.fc1.weight"), expected)
    np.testing.assert_array_equal(checkpoint.read("a.fc1.weight", (slice(3, 190), slice(None))), expected[3:190])
    np.testing.assert_array_equal(checkpoint.read("a.fc1.weight", (slice(None), slice(60, 70))), expected[:, 60:70])
    assert checkpoint.notes == ()
    assert not checkpoint.unread


@pytest.mark.parametrize("end", ["safetensors", "pth"])
def test_float8_scales_may_be_powers_of_two_in_a_byte(tmp_path, end):
    weight = torch.arange(-8, 8).reshape(4, 4).float()
    scale = torch.tensor([[0.5, 2.0], [8.0, 0.25]])
    path = float8(tmp_path / f"model.{end}", {"a.fc1.scale": scale.to(torch.float8_e8m0fnu)}, weight)
    expected = weight.numpy() * np.kron(scale.numpy(), np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(open_checkpoint(path).read("a.fc1.weight"), expected)


@pytest.mark.parametrize("end", ["safetensors", "pth"])
def test_float8_without_scales_that_fit_is_said(tmp_path, end):
    weight = torch.ones(6, 4)
    bare = open_checkpoint(float8(tmp_path / f"bare.{end}", {}, weight))
    np.testing.assert_array_equal(bare.read("a.fc1.weight"), weight)
    assert bare.notes == ("taken as they are, without scales: 1 tensor of float8",)
    for scales in (
        {"a.fc1.weight_scale": torch.ones(5)},
        {"a.fc1.weight_scale": torch.ones(7, 4)},
        {"a.fc1.weight_scale": torch.ones(1, 2, 2)},
        {"a.fc1.weight_scale": torch.ones(1, dtype=torch.int32)},
        {"a.fc1.weight_scale": torch.ones(1), "a.fc1.scale_weight": torch.ones(1)},
    ):
        checkpoint = open_checkpoint(float8(tmp_path / f"odd.{end}", scales, weight))
        assert "a.fc1.weight" not in checkpoint.shapes
        assert checkpoint.unread["a.fc1.weight"] == (6, 4)
        assert checkpoint.notes == ("scales that do not fit: 1 tensor of float8, such as a.fc1.weight",)


def test_scales_of_other_types_are_tensors_like_any_other(tmp_path):
    save_file({"a.weight": np.ones((4, 4), np.float32), "a.scale": np.full(1, 3, np.float32)}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert not checkpoint.scales
    np.testing.assert_array_equal(checkpoint.read("a.weight"), np.ones((4, 4)))


def test_float8_numbers_that_are_none_are_refused(tmp_path):
    path = float8(tmp_path / "model.safetensors", {"a.fc1.scale": torch.tensor(np.inf)}, torch.ones(4, 4))
    with pytest.raises(InputError, match=r"a\.fc1\.weight: expected finite"):
        open_checkpoint(path).read("a.fc1.weight")


def test_float8_halves_are_paired_by_what_they_stand_for(tmp_path):
    generator = torch.Generator().manual_seed(1)
    stored, expected = {}, {}
    for k in range(3):
        for name, shape in (("fc1", (160, 64)), ("fc2", (64, 160))):
            blocks = [-(-n // 128) for n in shape]
            scale = torch.rand(blocks, generator=generator) + 0.1
            weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
            stored |= {f"l.{k}.{name}.weight": weight, f"l.{k}.{name}.weight_scale_inv": scale}
            spread = np.kron(scale.numpy(), np.ones((128, 128), np.float32))[: shape[0], : shape[1]]
            expected[k, name] = weight.to(torch.float32).numpy() * spread
    save_torch(stored, tmp_path / "model.safetensors")
    mlps = find_halves(open_checkpoint(tmp_path / "model.safetensors"))
    assert mlps.account.skipped == {}  # a matrix of scales is no matrix of weights
    a, b = mlps.halves("in", "out").units(100, 150)
    np.testing.assert_array_equal(a, np.stack([expected[k, "fc1"][100:150] for k in range(3)]))
    np.testing.assert_array_equal(b, np.stack([expected[k, "fc2"][:, 100:150].T for k in range(3)]))
