"""Halves are found by shape or by name, read a part at a time, and never anything unsafe."""

import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

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
