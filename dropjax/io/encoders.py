"""Encoders of the BERT family in checkpoints, with tensors named as Hugging Face names them, as functions and arrays.

A layer is post-norm: attention, whose sum with the state is normalised, and an MLP, whose sum with the state is normalised
too. It is split into P parts, each with the norm that follows it. P = 1 is the whole layer; P = 2 is attention and MLP;
P = 4 is query and key, value and attention's output, the MLP's first half, and its second half.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from safetensors import SafetensorError, safe_open

from dropjax.core.errors import InputError
from dropjax.io.checkpoints import Checkpoint

LAYER = re.compile(r"^(.*encoder\.layer\.)(\d+)\.(.+)$")
"""The name of a layer's tensor: its prefix, the layer's number, and the rest."""

QUERY_KEY = ("attention.self.query", "attention.self.key")
VALUE_OUT = ("attention.self.value", "attention.output.dense", "attention.output.LayerNorm")
MLP_IN, MLP_OUT = ("intermediate.dense",), ("output.dense", "output.LayerNorm")
PARTS: dict[int, tuple[tuple[str, ...], ...]] = {
    1: ((*QUERY_KEY, *VALUE_OUT, *MLP_IN, *MLP_OUT),),
    2: ((*QUERY_KEY, *VALUE_OUT), (*MLP_IN, *MLP_OUT)),
    4: (QUERY_KEY, VALUE_OUT, MLP_IN, MLP_OUT),
}
"""The modules of each part, by P."""
PART_NAMES = {1: ("layer",), 2: ("attention", "MLP"), 4: ("query and key", "value and output", "MLP in", "MLP out")}

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu_new": lambda z: jax.nn.gelu(z, approximate=True),
    "gelu_pytorch_tanh": lambda z: jax.nn.gelu(z, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
"""The MLP's activations by their names in `config.json`."""

Part = dict[str, dict[str, Float[Array, "..."]]]


class State(NamedTuple):
    """The value that each layer takes and returns."""

    x: Float[Array, "N T d"]
    mask: Float[Array, "N T"]
    """1 for a token, 0 for padding."""


@dataclass(frozen=True)
class Settings:
    """Settings that the tensors do not show, from the `config.json` beside the checkpoint."""

    heads: int
    activation: str = "gelu"
    epsilon: float = 1e-12


@dataclass(frozen=True)
class Encoder:
    """The layers of an encoder, and their names in its checkpoint."""

    checkpoint: Checkpoint
    prefix: str
    """The beginning of the layers' names, up to the number."""
    numbers: tuple[int, ...]
    """The layers' numbers in the checkpoint, from the first to the last."""
    settings: Settings

    def parts(self, kinds: int) -> tuple[dict[str, dict[str, Float32[np.ndarray, "L ..."]]], ...]:
        """The arrays of P = `kinds` kinds of parts, each with a leading axis of layers. Raises `InputError`."""
        return tuple({module: self._module(module) for module in modules} for modules in PARTS[kinds])

    def _module(self, module: str) -> dict[str, Float32[np.ndarray, "L ..."]]:
        found = {}
        for kind in ("weight", "bias"):
            names = [f"{self.prefix}{k}.{module}.{kind}" for k in self.numbers]
            for name in names:
                if name not in self.checkpoint.shapes:
                    raise InputError(f"{self.checkpoint.path}: expected a tensor {name}, got none")
            shapes = [self.checkpoint.shapes[name] for name in names]
            if len(set(shapes)) > 1:
                other = next(k for k, shape in enumerate(shapes) if shape != shapes[0])
                raise InputError(
                    f"{self.checkpoint.path}: {names[other]}: expected the shape {list(shapes[0])}, as {names[0]} has, "
                    f"got {list(shapes[other])}"
                )
            found[kind] = np.stack([self.checkpoint.read(name) for name in names])
        return found

    def block(self, parts: Sequence[Part], state: State) -> State:
        """One layer from its parts, whatever P is."""
        p = {name: module for part in parts for name, module in part.items()}
        return State(self.mlp(p, self.attention(p, state).x), state.mask)

    def hidden_states(self, parts: Sequence[Part], x: Float[Array, "N T d"]) -> Float[Array, "N T d"]:
        """One layer on rows without padding."""
        return self.block(parts, State(x, jnp.ones(x.shape[:2]))).x

    def attention(self, p: Part, state: State) -> State:
        """The normalised sum of the state and attention's output."""
        x, mask = state
        rows, length, width = x.shape
        heads = self.settings.heads
        query, key, value = (
            _linear(x, p[f"attention.self.{name}"]).reshape(rows, length, heads, width // heads)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("nshd,nthd->nhst", query, key, precision="highest") / np.sqrt(width // heads)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None] > 0, scores, jnp.finfo(jnp.float32).min), -1)
        mixed = jnp.einsum("nhst,nthd->nshd", weights, value, precision="highest").reshape(x.shape)
        return State(self._norm(x + _linear(mixed, p["attention.output.dense"]), p["attention.output.LayerNorm"]), mask)

    def mlp(self, p: Part, x: Float[Array, "N T d"]) -> Float[Array, "N T d"]:
        """The normalised sum of the state and the MLP's output."""
        hidden = ACTIVATIONS[self.settings.activation](_linear(x, p["intermediate.dense"]))
        return self._norm(x + _linear(hidden, p["output.dense"]), p["output.LayerNorm"])

    def _norm(self, x: Float[Array, "N T d"], p: dict[str, Float[Array, " d"]]) -> Float[Array, "N T d"]:
        apart = x - x.mean(-1, keepdims=True)
        return apart / jnp.sqrt(x.var(-1, keepdims=True) + self.settings.epsilon) * p["weight"] + p["bias"]

    def embedded(self, tokens: Int[np.ndarray, "N T"]) -> Float[Array, "N T d"]:
        """The state that the checkpoint's own embeddings give the first layer. Raises `InputError` if it has none."""
        names = {name: self._embedding(name) for name in ("word_embeddings.weight", "position_embeddings.weight")}
        words, places = names.values()
        x = words[tokens] + places[: tokens.shape[1]]
        kinds = self.prefix.removesuffix("encoder.layer.") + "embeddings.token_type_embeddings.weight"
        if kinds in self.checkpoint.shapes:
            x = x + self.checkpoint.read(kinds)[0]
        norm = {kind: self._embedding(f"LayerNorm.{kind}") for kind in ("weight", "bias")}
        return self._norm(jnp.asarray(x), jax.tree.map(jnp.asarray, norm))

    def vocabulary(self) -> int:
        """The number of tokens in the vocabulary."""
        return len(self._embedding("word_embeddings.weight"))

    def _embedding(self, name: str) -> Float32[np.ndarray, "..."]:
        full = self.prefix.removesuffix("encoder.layer.") + "embeddings." + name
        if full not in self.checkpoint.shapes:
            raise InputError(
                f"{self.checkpoint.path}: expected --inputs, or a tensor {full} to make inputs with, got neither"
            )
        return self.checkpoint.read(full)

    def renamed(self, arrangement: Int[np.ndarray, "L P"]) -> Mapping[str, str]:
        """The new name of each layer's tensor by its old one, such that the layers are named in this order."""
        kinds = arrangement.shape[1]
        of_module = {module: p for p, modules in enumerate(PARTS[kinds]) for module in modules}
        names = {}
        for place, number in enumerate(self.numbers):
            for module, p in of_module.items():
                for kind in ("weight", "bias"):
                    old = f"{self.prefix}{self.numbers[arrangement[place, p]]}.{module}.{kind}"
                    names[old] = f"{self.prefix}{number}.{module}.{kind}"
        return names


def _linear(x: Float[Array, "... i"], p: dict[str, Float[Array, "..."]]) -> Float[Array, "... o"]:
    return jnp.matmul(x, p["weight"].T, precision="highest") + p["bias"]


def find_encoder(checkpoint: Checkpoint, heads: int | None = None) -> Encoder:
    """The encoder in a checkpoint. `heads` is needed if no `config.json` beside it gives it. Raises `InputError`."""
    found: dict[str, set[int]] = {}
    for name in checkpoint.shapes:
        if match := LAYER.match(name):
            found.setdefault(match[1], set()).add(int(match[2]))
    if len(found) != 1:
        got = f"those of {', '.join(sorted(found))[:200]}" if found else "none"
        raise InputError(f"{checkpoint.path}: expected the layers of one encoder, named …encoder.layer.<n>.…, got {got}")
    ((prefix, numbers),) = found.items()
    encoder = Encoder(checkpoint, prefix, tuple(sorted(numbers)), _settings(checkpoint, heads))
    name = f"{prefix}{encoder.numbers[0]}.attention.self.query.weight"
    width = checkpoint.shapes.get(name, (0,))[0]
    if width == 0 or width % encoder.settings.heads:
        expected = f"a width that {encoder.settings.heads} heads divide"
        raise InputError(f"{checkpoint.path}: {name}: expected {expected}, got {width or 'no such tensor'}")
    return encoder


def _settings(checkpoint: Checkpoint, heads: int | None) -> Settings:
    path = checkpoint.path.parent / "config.json"
    config: dict[str, Any] = {}
    if path.is_file():
        try:
            config = json.loads(path.read_text())
            heads = heads or int(config["num_attention_heads"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path}: expected a configuration with num_attention_heads, got something else") from None
    if not heads or heads < 1:
        raise InputError(f"{checkpoint.path}: expected a config.json beside it, or --heads, got neither")
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise InputError(f"{path}: hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {str(activation)[:60]}")
    return Settings(heads, activation, float(config.get("layer_norm_eps", 1e-12)))


def read_recorded(path: Path, keys: Sequence[str], optional: bool = False) -> Float32[np.ndarray, "..."] | None:
    """The tensor under the first of these keys that is in a .safetensors file, as float32. Raises `InputError`."""
    try:
        with safe_open(path, "numpy") as file:
            name = next((key for key in keys if key in file.keys()), None)  # noqa: SIM118  # no mapping
            if name is None and not optional:
                raise InputError(f"{path}: expected a tensor named {' or '.join(keys)}, got {', '.join(file.keys())[:200]}")
            return None if name is None else np.asarray(file.get_tensor(name)).astype(np.float32)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a .safetensors file, got nothing there") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected a .safetensors file, got {str(error)[:120]}") from None
