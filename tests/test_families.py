"""MLPs are recognised by the names that public models give their halves, and by nothing that only looks like them."""

import re

import numpy as np
import pytest

from dropjax.io import families

D, H = 24, 80
LETTERS = {"d": D, "h": H, "f": 2 * H, "q": 32, "k": 8, "e": 4, "r": 3, "v": 50, "t": 3 * D}


def shapes_of(layers: str, rest: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes by name, from `name:lengths` with a letter for each length, of three layers #; `.weight` is understood."""
    several = [one.replace("#", str(k)) for k in range(3) for one in layers.split()]
    shapes = {}
    for name, _, letters in (one.partition(":") for one in (*several, *rest.split())):
        whole = name if re.search("(weight|kernel|bias|scale)$", name) else f"{name}.weight"
        shapes[whole] = tuple(LETTERS[c] for c in letters)
    return shapes


def found(shapes, transposed=None) -> list[families.Found]:
    seen = families.evidence(shapes, transposed)
    names = [name for name, shape in shapes.items() if len(shape) == 2 and not families.reason_to_skip(name)]
    return families.by_name(names, seen)


LLAMA = (
    "model.layers.#.self_attn.q_proj:qd model.layers.#.self_attn.k_proj:kd model.layers.#.self_attn.o_proj:dq "
    "model.layers.#.input_layernorm:d "
)
MODELS = {
    "Llama": (LLAMA + "model.layers.#.mlp.gate_proj:hd model.layers.#.mlp.up_proj:hd "
              "model.layers.#.mlp.down_proj:dh", "up_proj", "down_proj", "gate_proj"),
    "Llama as published": ("layers.#.attention.wq:qd layers.#.attention.wk:kd layers.#.attention.wo:dq "
                           "layers.#.feed_forward.w1:hd layers.#.feed_forward.w2:dh "
                           "layers.#.feed_forward.w3:hd", "w3", "w2", "w1"),
    "EVA-02": ("blocks.#.attn.q_proj:dd blocks.#.mlp.w1:hd blocks.#.mlp.w2:hd "
               "blocks.#.mlp.w3:dh", "w2", "w3", "w1"),
    "DINOv2": ("blocks.#.attn.qkv:td blocks.#.mlp.w12:fd blocks.#.mlp.w3:dh", "w12", "w3", None),
    "timm": ("blocks.#.mlp.fc1_g:hd blocks.#.mlp.fc1_x:hd blocks.#.mlp.fc2:dh", "fc1_x", "fc2", "fc1_g"),
    "Phi-3": ("model.layers.#.mlp.gate_up_proj:fd model.layers.#.mlp.down_proj:dh "
              "model.layers.#.self_attn.qkv_proj:td", "gate_up_proj", "down_proj", None),
    "GPT-2": ("h.#.attn.c_attn:dt h.#.attn.c_proj:dd h.#.mlp.c_fc:dh h.#.mlp.c_fc.bias:h "
              "h.#.mlp.c_proj:hd h.#.mlp.c_proj.bias:d", "c_fc", "c_proj", ""),
    "nanoGPT": ("h.#.attn.c_attn:td h.#.attn.c_proj:dd h.#.mlp.c_fc:hd h.#.mlp.c_proj:dh",
                "c_fc", "c_proj", ""),
    "BERT": ("encoder.layer.#.attention.self.query:qd encoder.layer.#.attention.output.dense:dq "
             "encoder.layer.#.intermediate.dense:hd encoder.layer.#.output.dense:dh",
             "intermediate.dense", "output.dense", ""),
    "T5": ("encoder.block.#.layer.0.SelfAttention.q:qd encoder.block.#.layer.0.SelfAttention.o:dq "
           "encoder.block.#.layer.1.DenseReluDense.wi:hd encoder.block.#.layer.1.DenseReluDense.wo:dh",
           "wi", "wo", ""),
    "T5 1.1": ("encoder.block.#.layer.1.DenseReluDense.wi_0:hd encoder.block.#.layer.1.DenseReluDense.wi_1:hd "
               "encoder.block.#.layer.1.DenseReluDense.wo:dh", "wi_1", "wo", "wi_0"),
    "T5X": ("encoder/layers_#/attention/query/kernel:dq encoder/layers_#/attention/out/kernel:qd "
            "encoder/layers_#/mlp/wi/kernel:dh encoder/layers_#/mlp/wo/kernel:hd", "wi", "wo", ""),
    "ViT in Flax": ("encoderblock_#/MlpBlock_3/Dense_0/kernel:dh encoderblock_#/MlpBlock_3/Dense_0/bias:h "
                    "encoderblock_#/MlpBlock_3/Dense_1/kernel:hd encoderblock_#/MlpBlock_3/Dense_1/bias:d",
                    "Dense_0", "Dense_1", ""),
    "Whisper": ("blocks.#.attn.query:dd blocks.#.attn.out:dd blocks.#.mlp.0:hd blocks.#.mlp.2:dh",
                "mlp.0", "mlp.2", ""),
    "OPT": ("layers.#.self_attn.k_proj:qd layers.#.self_attn.out_proj:dq layers.#.fc1:hd "
            "layers.#.fc2:dh", "fc1", "fc2", ""),
    "GPT-NeoX": ("layers.#.attention.query_key_value:td layers.#.attention.dense:dd "
                 "layers.#.mlp.dense_h_to_4h:hd layers.#.mlp.dense_4h_to_h:dh",
                 "dense_h_to_4h", "dense_4h_to_h", ""),
    "GPT-J": ("h.#.attn.q_proj:qd h.#.attn.out_proj:dq h.#.mlp.fc_in:hd h.#.mlp.fc_out:dh",
              "fc_in", "fc_out", ""),
    "diffusers": ("transformer_blocks.#.attn1.to_q:qd transformer_blocks.#.attn1.to_out.0:dq "
                  "transformer_blocks.#.ff.net.0.proj:hd transformer_blocks.#.ff.net.2:dh",
                  "net.0.proj", "net.2", ""),
    "diffusers, GEGLU": ("transformer_blocks.#.ff.net.0.proj:fd transformer_blocks.#.ff.net.2:dh",
                         "net.0.proj", "net.2", None),
    "RWKV": ("blocks.#.att.key:qd blocks.#.att.output:dq blocks.#.ffn.key:hd "
             "blocks.#.ffn.receptance:dd blocks.#.ffn.value:dh", "key", "value", ""),
    "x-transformers": ("layers.#.1.ff.0.0:hd layers.#.1.ff.2:dh layers.#.0.to_q:qd", "ff.0.0", "ff.2", ""),
    "ModernBERT": ("layers.#.attn.Wqkv:td layers.#.attn.Wo:dd layers.#.mlp.Wi:fd layers.#.mlp.Wo:dh",
                   "Wi", "Wo", None),
    "Megatron": ("decoder.layers.#.self_attention.linear_qkv:td decoder.layers.#.self_attention.linear_proj:dd "
                 "decoder.layers.#.mlp.linear_fc1:fd decoder.layers.#.mlp.linear_fc2:dh",
                 "linear_fc1", "linear_fc2", None),
    "LitGPT": ("transformer.h.#.mlp.fc_1:hd transformer.h.#.mlp.fc_2:hd transformer.h.#.mlp.proj:dh "
               "transformer.h.#.attn.proj:dq", "fc_2", "proj", "fc_1"),
    "nn.Transformer": ("encoder.layers.#.self_attn.in_proj_weight:td encoder.layers.#.self_attn.out_proj:dd "
                       "encoder.layers.#.linear1:hd encoder.layers.#.linear2:dh", "linear1", "linear2", ""),
    "DistilBERT": ("layer.#.attention.q_lin:qd layer.#.attention.out_lin:dq layer.#.ffn.lin1:hd "
                   "layer.#.ffn.lin2:dh", "lin1", "lin2", ""),
    "ConvNeXt": ("stages.0.blocks.#.pwconv1:hd stages.0.blocks.#.pwconv2:dh", "pwconv1", "pwconv2", ""),
    "Conformer": ("layers.#.feed_forward1.linear1:hd layers.#.feed_forward1.linear2:dh "
                  "layers.#.self_attn.linear_q:qd layers.#.self_attn.linear_out:dq", "linear1", "linear2", ""),
    "Conformer, exported": ("attn_layers.#.ffm1.ffm.ffm.1:hd attn_layers.#.ffm1.ffm.ffm.4:dh "
                            "attn_layers.#.attn.attn.q_proj:qd attn_layers.#.attn.attn.o_proj:dq", "ffm.1", "ffm.4", ""),
    "Perceiver": ("blocks.#.cross_attention.mlp.dense1:hd blocks.#.cross_attention.mlp.dense2:dh "
                  "blocks.#.cross_attention.attention.output.dense:dq", "dense1", "dense2", ""),
    "XLNet": ("transformer.layer.#.ff.layer_1:hd transformer.layer.#.ff.layer_2:dh", "layer_1", "layer_2", ""),
    "ALBERT, unshared": ("layers.#.ffn:hd layers.#.ffn_output:dh layers.#.attention.dense:dd",
                         "ffn", "ffn_output", ""),
    "the paper's": ("#.inp:hd #.out:dh", "inp", "out", ""),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_public_models_halves_are_recognised(model):
    layers, up, out, gate = MODELS[model]
    shapes = shapes_of(layers, "embed:vd head:vd")
    (pool,) = found(shapes)
    assert (len(pool.mlps), pool.hidden, pool.width) == (3, H, D)
    for mlp in pool.mlps:
        assert families.stem(mlp.up).endswith(f".{up}")
        assert families.stem(mlp.out).endswith(f".{out}")
        assert families.stem(mlp.gate).endswith(gate or "")
        assert (mlp.told, mlp.known) == ("names", True)
        assert mlp.fused == (gate is None)
        assert bool(mlp.gate) == bool(gate)
        assert re.findall("[0-9]", mlp.up)[0] == re.findall("[0-9]", mlp.out)[0]
    assert pool.mlps[0].gate_second == ("GEGLU" in model)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_stored_the_other_way_round_is_the_same_mlp(model):
    layers, up, out, _ = MODELS[model]
    shapes = {name: shape[::-1] for name, shape in shapes_of(layers).items()}
    (pool,) = found(shapes, transposed=model not in ("GPT-2", "T5X", "ViT in Flax"))
    assert (len(pool.mlps), pool.hidden, pool.width) == (3, H, D)
    assert families.stem(pool.mlps[0].up).endswith(f".{up}")
    assert families.stem(pool.mlps[0].out).endswith(f".{out}")


@pytest.mark.parametrize(
    "layers",
    [
        LLAMA,
        "layers.#.q_proj.lora_A:ed layers.#.q_proj.lora_B:de",
        "layers.#.mlp.up_proj.lora_A.default:ed layers.#.mlp.up_proj.lora_B.default:de",
        "lora_unet_blocks_#_ff_net_0_proj.lora_down:ed lora_unet_blocks_#_ff_net_0_proj.lora_up:de",
        "layers.#.mixer.in_proj:fd layers.#.mixer.out_proj:dh layers.#.mixer.x_proj:hd",
        "layers.#.attn.Wqkv:hd layers.#.attn.Wo:dh",
        "layers.#.attention.0:hd layers.#.attention.2:dh",
        "encoder.layer.#.attention.self.query:hd encoder.layer.#.attention.output.dense:dh",
        "layers.#.query:hd layers.#.value:dh",
        "layers.#.wq:hd layers.#.wv:dh",
        "layers.#.w1:hd layers.#.w2:hd layers.#.w3:hd",
        "layers.#.fc1:hd layers.#.fc2:dd layers.#.fc3:dh",
        "layers.#.fc1:hd layers.#.fc2:dq",
    ],
)
def test_what_is_no_mlp_is_not_called_one(layers):
    assert found(shapes_of(layers)) == []


def test_experts_narrower_than_the_model_are_found_and_the_router_is_not():
    LETTERS["h"] = 10
    try:
        experts = " ".join(
            f"model.layers.#.mlp.experts.{e}.{n}:{s}" for e in range(4)
            for n, s in (("gate_proj", "hd"), ("up_proj", "hd"), ("down_proj", "dh"))
        )  # fmt: skip
        shared = (
            "model.layers.#.mlp.shared_expert.gate_proj:qd model.layers.#.mlp.shared_expert.up_proj:qd "
            "model.layers.#.mlp.shared_expert.down_proj:dq model.layers.#.mlp.gate:ed"
        )
        routed, other = found(shapes_of(f"{LLAMA} {experts} {shared}"))
    finally:
        LETTERS["h"] = H
    assert (len(routed.mlps), routed.hidden, routed.width) == (12, 10, D)
    assert (len(other.mlps), other.hidden, other.width) == (3, 32, D)
    assert all("up_proj" in mlp.up and "gate_proj" in mlp.gate and "down_proj" in mlp.out for mlp in routed.mlps)


BOTTLENECK = "layers.#.down:kd layers.#.up:dk"


@pytest.mark.parametrize(
    ("layers", "first", "told", "known"),
    [
        (f"{BOTTLENECK} layers.#.down.bias:k layers.#.up.bias:d", "down", "names and biases", True),
        (f"{BOTTLENECK} layers.#.norm:d", "down", "normalisations", True),
        (f"{BOTTLENECK} layers.#.down.bias:k layers.#.norm:k", "up", "normalisations", True),
        (f"{BOTTLENECK} layers.#.down.bias:d layers.#.norm:d", "down", "normalisations", False),
        (BOTTLENECK, "up", "h > d", False),
        ("layers.#.down.kernel:dk layers.#.up.kernel:kd", "down", "names", True),
        (BOTTLENECK.replace("layers.#", "layers.#.adapter"), "down", "names", True),
        (BOTTLENECK.replace("layers.#", "layers.#.ffn"), "up", "names", True),
        ("layers.#.adapter_down:kd layers.#.adapter_up:dk", "adapter_down", "names and biases", True),
    ],
)
def test_down_and_up_are_an_adapter_or_an_mlp_as_more_than_they_tell(layers, first, told, known):
    if "adapter_down" in layers:
        layers += " layers.#.adapter_down.bias:k"
    (pool,) = found(shapes_of(layers))
    mlp = pool.mlps[0]
    assert families.stem(mlp.up).endswith(f".{first}")
    assert (mlp.told, mlp.known) == (told, known)


def test_names_that_biases_and_normalisations_contradict_do_not_tell():
    layers = "layers.#.fc1:hd layers.#.fc1.bias:h layers.#.fc2:dh layers.#.fc2.bias:d layers.#.norm:"
    (agreed,), (against,) = found(shapes_of(layers + "d")), found(shapes_of(layers + "h"))
    assert agreed.mlps[0].known
    assert not against.mlps[0].known
    assert "contradict" in against.mlps[0].told


@pytest.mark.parametrize(
    ("layers", "transposed", "layout"),
    [
        ("l.#.fc1:hd l.#.fc2:dh", False, ""),
        ("l.#.fc1:hd l.#.fc2:dh l.#.fc1.bias:h", False, "biases"),
        ("l.#.fc1:dh l.#.fc2:hd l.#.fc1.bias:h", True, "biases"),
        ("l.#.fc1:dh l.#.fc2:hd l.#.fc2.bias:d", True, "biases"),
        ("l.#.fc1:dh l.#.fc2:hd l.#.ln:d", True, "normalisations"),
        ("l.#.fc1:hd l.#.fc2:dh l.#.ln:d", False, "normalisations"),
        ("l.#.fc1:hd l.#.fc2:dh l.#.ln:d l.#.inner_norm:h", False, ""),
        ("l.#.fc1:hd l.#.fc2:dh l.#.fc1.bias:h l.#.fc2.bias:h", False, ""),
        ("l.#.fc1.kernel:dh l.#.fc2.kernel:hd", True, "names"),
        ("l.#.fc1.kernel:hd l.#.fc2.kernel:dh l.#.fc1.bias:h", False, "biases"),
        ("l.#.fc1:dd l.#.fc2:dd l.#.fc1.bias:d", False, ""),
        ("l.#.fc1:df l.#.fc2:hd", True, "shapes"),
    ],
)
def test_how_matrices_are_stored_is_told_by_what_is_stated(layers, transposed, layout):
    (pool,) = found(shapes_of(layers))
    assert (pool.mlps[0].up, pool.mlps[0].transposed, pool.mlps[0].layout) == (
        f"l.0.fc1.{'kernel' if 'kernel' in layers else 'weight'}",
        transposed,
        layout,
    )


def by_shape(layers: str, transposed=None):
    shapes = shapes_of(layers)
    seen = families.evidence(shapes, transposed)
    return families.by_shape([name for name, shape in shapes.items() if len(shape) == 2], seen)


@pytest.mark.parametrize(
    ("layers", "first", "told", "known"),
    [
        ("a.#.x:hd a.#.y:dh", "x", "h > d", False),
        ("a.#.x:hd a.#.y:dh a.#.x.bias:h", "x", "h > d", False),
        ("a.#.x:hd a.#.y:dh a.#.y.bias:h", "y", "h > d", False),
        ("a.#.x:hd a.#.y:dh a.#.norm:d", "x", "normalisations", False),
        ("a.#.x:hd a.#.y:dh a.#.norm:d a.#.x.bias:h", "x", "normalisations and biases", True),
        ("a.#.x:hd a.#.y:dh a.#.norm:h a.#.x.bias:h", "y", "normalisations and biases", True),
        ("a.#.x.kernel:dh a.#.y.kernel:hd a.#.norm.scale:d", "x", "normalisations and biases", True),
        ("a.#.x:fd a.#.y:dh", "x", "shapes", True),
    ],
)
def test_where_names_tell_nothing_the_direction_is_told_or_said_to_be_a_guess(layers, first, told, known):
    assert found(shapes_of(layers)) == []
    (pool,) = by_shape(layers)
    assert f".{first}." in pool.mlps[0].up
    assert (pool.mlps[0].told, pool.mlps[0].known) == (told, known)
    width, hidden = (H, D) if "norm:h" in layers else (D, H)
    assert (pool.width, pool.hidden) == (width, hidden)


def test_twice_as_many_of_one_shape_are_gated_if_names_tell_the_gates():
    (pool,) = by_shape("a.#.gate_one:hd a.#.one:hd a.#.back:dh")
    assert (pool.mlps[0].up, pool.mlps[0].gate, pool.mlps[0].out) == tuple(
        f"a.0.{name}.weight" for name in ("one", "gate_one", "back")
    )
    assert by_shape("a.#.one:hd a.#.two:hd a.#.back:dh") == []


def test_quantised_halves_are_known_by_their_names():
    for name in (
        "model.layers.0.mlp.up_proj.qweight",
        "blocks.3.ffn.down.weight.qweight",
        "h.0.mlp.0.weight",
        "a.fc1.weight",
    ):
        assert families.is_half(name), name
    for name in ("model.layers.0.mlp.up_proj.qzeros", "embed.weight", "layers.0.weight", "position_ids"):
        assert not families.is_half(name), name


def test_numbers_in_names_sort_as_numbers():
    names = [f"layers.{k}.fc1.weight" for k in (0, 9, 10, 100, int("9" * 30))]
    shuffled = [names[k] for k in np.random.default_rng(0).permutation(len(names))]
    assert sorted(shuffled, key=families.natural) == names


@pytest.mark.parametrize(
    "part", ["mlp" + "9" * 60 + "!", "mlp" + "_9" * 60 + "!", "norm" + "_a" * 60 + "!", "_" * 20_000, "a." * 20_000]
)
@pytest.mark.parametrize("end", ["", ".fc1.weight", ".weight", ".attn.q"])
def test_names_that_are_made_to_be_slow_are_looked_through_at_once(part, end):
    shapes = {f"{part}{k}{end}": shape for k, shape in enumerate([(H, D), (D, H)])} | {f"{part}{end}.norm": (D,)}
    assert len(found(shapes)) <= 1  # two numbers in one place may be an MLP
    assert not families.is_half(f"{part}.x")


def test_a_bias_that_contradicts_a_fused_reading_is_heeded():
    layers = "layers.#.upd.0:dt layers.#.upd.2:hd"
    LETTERS["t"], before = 2 * H, LETTERS["t"]
    try:
        (fused,) = found(shapes_of(layers))
        biased = shapes_of(f"{layers} layers.#.upd.0.bias:d")
    finally:
        LETTERS["t"] = before
    assert fused.mlps[0].fused
    assert found(biased) == []
    seen = families.evidence(biased, None)
    assert families.by_shape([name for name, shape in biased.items() if len(shape) == 2], seen) == []
