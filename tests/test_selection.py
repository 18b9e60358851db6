"""The choice of a checkpoint's MLPs, what is left out, and the account of both."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dropjax.core.errors import InputError
from dropjax.io.checkpoints import open_checkpoint
from dropjax.io.halves import Mlps, find_halves

D, H = 12, 30


def mlps_of(prefix: str, seed: int = 0, count: int = 3, near: float = 0.0) -> dict[str, np.ndarray]:
    rng, other = np.random.default_rng(seed), np.random.default_rng(99)
    return {
        f"{prefix}blocks.{k}.{name}.weight": rng.normal(size=shape) + near * other.normal(size=shape)
        for k in range(count)
        for name, shape in (("fc1", (H, D)), ("fc2", (D, H)))
    }


def chosen(folder: Path, arrays, *patterns) -> Mlps:
    stored = {
        name: np.ascontiguousarray(array if array.dtype.kind in "iu" else array.astype(np.float32))
        for name, array in arrays.items()
    }
    save_file(stored, folder / "model.safetensors")
    return find_halves(open_checkpoint(folder / "model.safetensors"), *patterns)


@pytest.mark.parametrize("averaged", ["model_ema.", "ema.", "ema_model.", "teacher.", "a.swa."])
def test_averaged_weights_beside_the_raw_ones_are_left_out_and_named(tmp_path, averaged):
    mlps = chosen(tmp_path, mlps_of("model.") | mlps_of(averaged, near=0.05))
    assert mlps.sides["in"].names == tuple(f"model.blocks.{k}.fc1.weight" for k in range(3))
    assert mlps.sides["out"].names == tuple(f"model.blocks.{k}.fc2.weight" for k in range(3))
    for k, twin in enumerate(mlps.account.twins):
        assert (twin.copy, twin.of) == (f"{averaged}blocks.{k}.fc1.weight", f"model.blocks.{k}.fc1.weight")
        assert 0.99 < twin.cosine < 1
    assert len(mlps.account.twins) == 3
    assert mlps.account.skipped == {"of twins": 6}
    assert "3 left out as twins" in mlps.account.limits
    assert any("left out as twins: 3 MLPs" in line and averaged in line for line in mlps.account.lines(False))


def test_unlike_weights_of_the_same_shape_are_no_twins(tmp_path):
    mlps = chosen(tmp_path, mlps_of("model.") | mlps_of("model_ema.", seed=1))
    assert mlps.depth == 6
    assert mlps.account.twins == mlps.account.alike == ()
    assert mlps.account.limits == ""


def test_both_halves_have_to_be_copies(tmp_path):
    arrays = mlps_of("model.") | mlps_of("model_ema.", near=0.05)
    arrays |= {name: a for name, a in mlps_of("model_ema.", seed=1).items() if "fc2" in name}
    assert chosen(tmp_path, arrays).depth == 6


def test_layers_that_share_their_weights_stay_and_are_named(tmp_path):
    arrays = mlps_of("model.")
    arrays |= {name.replace("blocks.0", "blocks.3"): a for name, a in arrays.items() if "blocks.0" in name}
    mlps = chosen(tmp_path, arrays)
    assert mlps.depth == 4
    (pair,) = mlps.account.alike
    assert (pair.copy, pair.of) == ("model.blocks.3.fc1.weight", "model.blocks.0.fc1.weight")
    assert pair.cosine == pytest.approx(1)
    assert any("kept although twins" in line for line in mlps.account.lines(False))


def test_whoever_names_twins_gets_them_and_is_told(tmp_path):
    arrays = mlps_of("model.") | mlps_of("ema.", near=0.05)
    mlps = chosen(tmp_path, arrays, "*fc1.weight", "*fc2.weight")
    assert mlps.depth == 6
    assert mlps.account.twins == ()
    assert len(mlps.account.alike) == 3


def test_one_mlp_and_its_copy_are_not_two(tmp_path):
    with pytest.raises(InputError, match=r"at least 2 MLPs, got .* copy of model\.blocks\.0"):
        chosen(tmp_path, mlps_of("model.", count=1) | mlps_of("ema.", count=1, near=0.05))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_twins_are_told_at_any_scale(tmp_path, scale):
    arrays = mlps_of("model.") | mlps_of("ema.", near=0.05)
    mlps = chosen(tmp_path, {name: scale * a for name, a in arrays.items()})
    assert len(mlps.account.twins) == 3
    assert chosen(tmp_path, {name: 0 * a for name, a in arrays.items()}).account.twins == ()


def test_everything_that_is_left_out_is_counted(tmp_path):
    arrays = mlps_of("model.") | {
        "embed.weight": np.ones((50, D)),
        "model.blocks.0.attn.q_proj.weight": np.ones((D, D)),
        "model.blocks.0.attn.q_proj.lora_A.weight": np.ones((2, D)),
        "model.blocks.0.attn.q_proj.lora_B.weight": np.ones((D, 2)),
        "head.fc1.weight": np.ones((7, 5)),
        "head.fc2.weight": np.ones((5, 7)),
        "experts.weight": np.ones((4, H, D)),
        "position_ids": np.arange(9).reshape(1, 9),
        "model.blocks.3.fc1.weight": np.ones((H, D), np.int8),
        "model.blocks.3.attn.q_proj.weight": np.ones((D, D), np.int8),
        "model.blocks.4.fc1.weight": np.ones((H, D)),
    }
    mlps = chosen(tmp_path, arrays)
    account = mlps.account
    assert mlps.depth == 3
    assert account.skipped == {
        "of adapters": 2,
        "of attention": 1,
        "of other MLPs": 2,
        "other matrices": 1,
        "tensors of more than two dimensions": 1,
        "of incomplete MLPs": 1,
    }
    assert account.unreadable == {"int64": 1, "int8": 2}
    assert account.halves_unreadable == ("model.blocks.3.fc1.weight",)
    assert account.incomplete == ("model.blocks.4.fc1.weight",)
    assert not account.whole
    assert mlps.others == ("1 like head.fc1.weight with head.fc2.weight",)
    text = "\n".join(account.lines(False))
    for words in (
        "in and out: from names; stored [out, in], by default",
        "not read: 1 of int64, 2 of int8; 1 matrix (such as model.blocks.3.fc1.weight) with the name of a half",
        "incomplete: 1 matrix (such as model.blocks.4.fc1.weight)",
        "2 of adapters",
    ):
        assert words in text
    assert account.limits == ", for the chosen ones only (1 not read, 1 incomplete)"
    assert sum(account.skipped.values()) + 2 * mlps.depth == len([a for a in arrays.values() if a.dtype != np.int8]) - 1


def test_adapters_beside_mlps_are_not_mixed_with_them(tmp_path):
    rng = np.random.default_rng(3)
    adapters = {
        f"m.blocks.{k}.adapter_{name}.weight": rng.normal(size=shape)
        for k in range(3)
        for name, shape in (("down", (4, D)), ("up", (D, 4)))
    }
    mlps = chosen(tmp_path, mlps_of("m.") | adapters)
    assert (mlps.depth, mlps.hidden) == (3, H)
    assert mlps.others == ("3 like m.blocks.0.adapter_up.weight with m.blocks.0.adapter_down.weight",)
    biased = chosen(tmp_path, mlps_of("m.") | adapters | {"m.blocks.0.norm.weight": np.ones(D)})
    assert biased.others == ("3 like m.blocks.0.adapter_down.weight with m.blocks.0.adapter_up.weight",)


def test_a_direction_that_nothing_tells_is_said_to_be_unknown(tmp_path):
    arrays = {name.replace("fc1", "x").replace("fc2", "y"): a for name, a in mlps_of("m.").items()}
    account = chosen(tmp_path, arrays).account
    assert not account.direction_known
    assert account.lines(False)[0] == "in and out: unknown (assumed from h > d); stored [out, in], by default"
    record = account.record(False)
    assert (record["direction"], record["direction_guess"], record["layout"]) == ("unknown", "h > d", "unknown")
    named = chosen(tmp_path, arrays, "*x.weight", "*y.weight").account.record(False)
    assert (named["direction"], named["direction_guess"]) == ("--in and --out", None)


def test_patterns_say_what_of_theirs_cannot_be_read(tmp_path):
    arrays = mlps_of("m.") | {"m.blocks.3.fc1.weight": np.ones((H, D), np.int8)}
    account = chosen(tmp_path, arrays, "*fc1.weight", "*fc2.weight").account
    assert account.halves_unreadable == ("m.blocks.3.fc1.weight",)
    assert not account.whole
    with pytest.raises(InputError, match=r"--in '\*fc1\.weight': expected matrices .* that can be read, got 3 of int8"):
        quantised = {name: a.astype(np.int8) if "fc1" in name else a for name, a in mlps_of("m.").items()}
        chosen(tmp_path, quantised, "*fc1.weight", "*fc2.weight")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({f"layers.{k}.q_proj.lora_{s}.weight": np.ones((2, 9)) for k in range(4) for s in "AB"}, "got 8 of adapters"),
        ({f"layers.{k}.attn.{n}.weight": np.ones((9, 9)) for k in range(4) for n in "qk"}, "got 8 of attention"),
        (
            {f"layers.{k}.mlp.up_proj.qweight": np.ones((9, 9), np.int32) for k in range(4)},
            "got 4 of int32, which is not read",
        ),
        (mlps_of("m.", count=1), "by name 1 MLP: m.blocks.0.fc1.weight with m.blocks.0.fc2.weight"),
    ],
)
def test_what_was_there_in_place_of_mlps_is_said(tmp_path, arrays, words):
    with pytest.raises(InputError) as caught:
        chosen(tmp_path, arrays)
    assert words in str(caught.value)
    assert "--in and --out" in str(caught.value)
