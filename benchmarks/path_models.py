"""Networks for `pairing.py models` that no package holds: trained here in minutes, and stored under public models' names.

A residual network of convolutional bottlenecks and a vision transformer learn scikit-learn's digits; a causal transformer
with gated MLPs and grouped heads learns a generated language. Needs torch and scikit-learn.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

EPOCHS = {"bottlenecks": 120, "vision": 40, "decoder": 12}
DEPTH = {"bottlenecks": 17, "vision": 12, "decoder": 12}
"""Blocks: of bottlenecks in each of two stages, the first of which has other shapes in the second stage."""


class Bottleneck(nn.Module):
    """A residual block as torchvision calls its layers: 1×1, 3×3, 1×1, each with its batch normalisation."""

    def __init__(self, width: int, inner: int, before: int = 0, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before or width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(inner), nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.downsample = (
            nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)) if before else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features in, features out."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        inner = functional.relu(self.bn2(self.conv2(inner)))
        return functional.relu(self.bn3(self.conv3(inner)) + (x if self.downsample is None else self.downsample(x)))


class Bottlenecks(nn.Module):
    """A residual network of two stages."""

    def __init__(self, width: int = 64, inner: int = 16) -> None:
        super().__init__()
        depth = DEPTH["bottlenecks"]
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*(Bottleneck(width, inner) for _ in range(depth)))
        wider = [Bottleneck(2 * width, 2 * inner, width), *(Bottleneck(2 * width, 2 * inner) for _ in range(depth - 1))]
        self.layer2 = nn.Sequential(*wider)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 8, 8] in, logits [N, 10] out."""
        x = self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """Self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, T, d] in and out."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class VisionBlock(nn.Module):
    """A block as timm calls its layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in and out."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Vision(nn.Module):
    """A vision transformer on 16 patches of 2×2."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(VisionBlock(width, heads) for _ in range(DEPTH["vision"])))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 8, 8] in, logits [N, 10] out."""
        patches = functional.unfold(x, 2, stride=2).transpose(1, 2)
        return self.head(self.norm(self.blocks(self.patch_embed(patches) + self.pos_embed)).mean(1))


class DecoderLayer(nn.Module):
    """A layer as Llama calls its parts: grouped heads, and a gated MLP."""

    def __init__(self, width: int, hidden: int, heads: int, groups: int) -> None:
        super().__init__()
        size = width // heads
        self.size = size

        def linear(a: int, b: int) -> nn.Linear:
            return nn.Linear(a, b, bias=False)

        self.self_attn = nn.ModuleDict(
            {
                "q_proj": linear(width, width),
                "k_proj": linear(width, groups * size),
                "v_proj": linear(width, groups * size),
                "o_proj": linear(width, width),
            }
        )
        gated = {"gate_proj": linear(width, hidden), "up_proj": linear(width, hidden), "down_proj": linear(hidden, width)}
        self.mlp = nn.ModuleDict(gated)
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in and out."""
        y = self.input_layernorm(x)
        split = (self.self_attn[f"{k}_proj"](y).unflatten(-1, (-1, self.size)).transpose(1, 2) for k in "qkv")
        mixed = functional.scaled_dot_product_attention(*split, is_causal=True, enable_gqa=True)
        x = x + self.self_attn["o_proj"](mixed.transpose(1, 2).flatten(2))
        y = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](functional.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y))


class Decoder(nn.Module):
    """A causal transformer."""

    def __init__(self, words: int = 64, width: int = 96, hidden: int = 256, heads: int = 6, groups: int = 2) -> None:
        super().__init__()
        self.embed_tokens, self.positions = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(64, width))
        self.layers = nn.Sequential(*(DecoderLayer(width, hidden, heads, groups) for _ in range(DEPTH["decoder"])))
        self.norm, self.lm_head = nn.RMSNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Words [N, T] in, logits [N, T, words] out."""
        return self.lm_head(self.norm(self.layers(self.embed_tokens(x) + self.positions[: x.shape[1]])))


def language(seed: int = 0, lines: int = 4096, length: int = 48, words: int = 64) -> Tensor:
    """Lines [N, T] in which the next word depends on the last two, and every line repeats itself from its middle on."""
    draw = torch.Generator().manual_seed(seed)
    follows = torch.randint(words, (words, 4, 3), generator=draw)
    text = torch.randint(words, (lines, length), generator=draw)
    for k in range(2, length // 2):
        choice = torch.randint(3, (lines,), generator=draw)
        text[:, k] = follows[text[:, k - 1], text[:, k - 2] % 4, choice]
    text[:, length // 2 :] = text[:, : length - length // 2]
    return text


def _digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32).unflatten(1, (1, 8, 8)) / 16, torch.tensor(labels)


def moved(images: Tensor) -> Tensor:
    """The images moved by up to a pixel either way, and noisy, so that they are not soon known by heart."""
    down, right = torch.randint(3, (2,)).tolist()
    padded = functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, down : down + 8, right : right + 8] + 0.15 * torch.randn(images.shape)


def _train(
    model: nn.Module, name: str, inputs: Tensor, loss: Callable[[Tensor, Tensor], Tensor], rate: float, epochs: int = 0
) -> float:
    """Trains the model, and gives the last epoch's mean loss."""
    torch.set_num_threads(1)  # such small networks gain nothing from more
    batch, epochs = 64, epochs or EPOCHS[name]
    steps = epochs * math.ceil(len(inputs) / batch)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    mean = 0.0
    for _ in range(epochs):
        losses = []
        for which in torch.randperm(len(inputs)).split(batch):
            value = loss(model(moved(inputs[which]) if name == "bottlenecks" else inputs[which]), which)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(value.detach()))
        mean = sum(losses) / len(losses)
    return mean


def trained(name: str, seed: int = 0) -> tuple[nn.Module, float]:
    """One of the three networks, trained, with its last mean loss."""
    torch.manual_seed(seed)
    if name == "decoder":
        text = language(seed)
        model = Decoder()

        def next_word(logits: Tensor, which: Tensor) -> Tensor:
            return functional.cross_entropy(logits[:, :-1].flatten(0, 1), text[which, 1:].flatten())

        return model, _train(model, name, text, next_word, 3e-3)
    images, labels = _digits()
    model = Bottlenecks() if name == "bottlenecks" else Vision()
    rate = 3e-3 if name == "bottlenecks" else 1e-3
    return model, _train(model, name, images, lambda logits, which: functional.cross_entropy(logits, labels[which]), rate)


def fine_tuned(path: Path, labels: Sequence[int], seed: int, epochs: int = 3) -> dict[str, Tensor]:
    """The vision transformer in a file, trained further on some digits alone."""
    torch.manual_seed(seed)
    model = Vision()
    model.load_state_dict(load_file(path))
    images, all_labels = _digits()
    some = torch.isin(all_labels, torch.tensor(labels))
    images, all_labels = images[some], all_labels[some]

    def loss(logits: Tensor, which: Tensor) -> Tensor:
        return functional.cross_entropy(logits, all_labels[which])

    _train(model, "vision", images, loss, 3e-4, epochs)
    return model.state_dict()


def write(folder: Path, names: Sequence[str] = tuple(EPOCHS)) -> dict[str, Path]:
    """Trains the networks that are not in the folder yet; the decoder has its config.json beside it."""
    paths = {}
    for name in names:
        path = paths[name] = folder / name / "model.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            model, loss = trained(name)
            print(f"{name}: trained to a loss of {loss:.3g}", flush=True)
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    if "decoder" in paths:
        (paths["decoder"].parent / "config.json").write_text('{"num_attention_heads": 6, "num_key_value_heads": 2}\n')
    return paths


if __name__ == "__main__":
    import sys

    write(Path(sys.argv[1]))
