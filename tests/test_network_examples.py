"""The examples in their short forms, and the command `python -m dropjax.order`, on an encoder drawn here."""

import importlib
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import commands
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
L, D, H = 4, 8, 12


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in ("common", "causal_transformer", "convolutions", "pretrained_encoder"):
        sys.modules.pop(name, None)


def write_encoder(folder: Path, prefix="bert.", config=True) -> Path:
    """A small encoder's checkpoint, and its configuration."""
    rng = np.random.default_rng(0)
    arrays = {}

    def linear(name, out, into):
        arrays[f"{name}.weight"] = rng.normal(size=(out, into)) / np.sqrt(into)
        arrays[f"{name}.bias"] = rng.normal(size=out) / 4

    def norm(name):
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = 1 + rng.normal(size=D) / 8, rng.normal(size=D) / 8

    for k in range(L):
        layer = f"{prefix}encoder.layer.{k}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(layer + name, D, D)
        linear(layer + "intermediate.dense", H, D)
        linear(layer + "output.dense", D, H)
        norm(layer + "attention.output.LayerNorm")
        norm(layer + "output.LayerNorm")
    for name, size in (("word", 30), ("position", 20), ("token_type", 2)):
        arrays[f"{prefix}embeddings.{name}_embeddings.weight"] = rng.normal(size=(size, D))
    norm(f"{prefix}embeddings.LayerNorm")
    path = folder / "model.safetensors"
    save_file({name: a.astype(np.float32) for name, a in arrays.items()}, path)
    if config:
        settings = {"num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
        (folder / "config.json").write_text(json.dumps(settings))
    return path


def by_hand(path: Path, x, mask):
    """The encoder in plain NumPy and float64, one row after another."""
    from scipy.special import erf

    arrays = {name: a.astype(np.float64) for name, a in load_file(path).items()}

    def linear(x, name):
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def norm(x, name):
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return z * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    rows = []
    for state, here in zip(np.asarray(x, np.float64), mask, strict=True):
        for k in range(L):
            layer = f"bert.encoder.layer.{k}."
            q, key, v = (linear(state, layer + f"attention.self.{name}") for name in ("query", "key", "value"))
            heads = []
            for part in (slice(0, D // 2), slice(D // 2, D)):
                scores = np.where(here > 0, np.exp(q[:, part] @ key[:, part].T / np.sqrt(D // 2)), 0)
                heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
            mixed = linear(np.concatenate(heads, axis=1), layer + "attention.output.dense")
            state = norm(state + mixed, layer + "attention.output.LayerNorm")
            z = linear(state, layer + "intermediate.dense")
            hidden = linear(z * (1 + erf(z / np.sqrt(2))) / 2, layer + "output.dense")
            state = norm(state + hidden, layer + "output.LayerNorm")
        rows.append(state)
    return np.stack(rows)


def recorded(folder: Path, model: Path) -> Path:
    """Hidden states before and behind the encoder, the last row's last token being padding."""
    rng = np.random.default_rng(1)
    x, mask = rng.normal(size=(8, 5, D)).astype(np.float32), np.ones((8, 5), np.float32)
    mask[-1, -1] = 0
    path = folder / "states.safetensors"
    save_file({"x": x, "mask": mask, "target": by_hand(model, x, mask).astype(np.float32)}, path)
    return path


def disorder(model: Path, folder: Path) -> Path:
    """The checkpoint with the attention of layers 0 and 2 exchanged, and MLPs turned round by one."""
    arrays = load_file(model)
    folder.mkdir()
    moved = {}
    for name, array in arrays.items():
        head, found, rest = name.partition("encoder.layer.")
        if not found:
            moved[name] = array
            continue
        k, what = rest.split(".", 1)
        to = {"0": "2", "2": "0"}.get(k, k) if what.startswith("attention") else str((int(k) + 1) % L)
        moved[f"{head}{found}{to}.{what}"] = array
    save_file(moved, folder / "model.safetensors")
    (folder / "config.json").write_text((model.parent / "config.json").read_text())
    return folder / "model.safetensors"


command = partial(commands.run, "order")


def test_a_checkpoint_in_disorder_is_mended_by_recorded_states(tmp_path):
    model = write_encoder(tmp_path)
    states, wrong = recorded(tmp_path, model), disorder(model, tmp_path / "wrong")
    out, record = tmp_path / "mended.safetensors", tmp_path / "record.json"
    done = command(wrong, "--inputs", states, "--outputs", states, "--out", out, "--json", record)
    assert (done.returncode, done.stderr) == (0, "")
    assert "exchange attention of blocks 0 and 2" in done.stdout
    mended, sound = load_file(out), load_file(model)
    assert mended.keys() == sound.keys()
    assert all(mended[name].tobytes() == sound[name].tobytes() for name in sound)
    found = json.loads(record.read_text())
    assert found["solved"] is True
    assert found["sound"] is False
    assert found["wrong"] == [0, 1, 2, 3]

    right = command(model, "--inputs", states, "--outputs", states, "--quiet")
    assert (right.returncode, right.stdout) == (0, json.dumps([[k, k] for k in range(L)]) + "\n")


def test_a_sound_checkpoint_is_dropped_and_put_back_as_a_demonstration(tmp_path):
    done = command(write_encoder(tmp_path).parent, "--shuffle", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert "of 8 shuffled parts, 8 are back in their places" in done.stdout


def test_another_models_states_are_not_solved(tmp_path):
    model = write_encoder(tmp_path)
    states = tmp_path / "states.safetensors"
    rng = np.random.default_rng(2)
    save_file({name: rng.normal(size=(4, 5, D)).astype(np.float32) for name in ("x", "target")}, states)
    done = command(model, "--inputs", states, "--outputs", states, "--time-limit", 2)
    assert (done.returncode, done.stderr) == (1, "")
    assert "NOT SOLVED" in done.stdout


@pytest.mark.slow
def test_a_search_that_is_interrupted_gives_its_best_and_goes_on_from_its_checkpoint(tmp_path):
    model = write_encoder(tmp_path)
    states, kept = tmp_path / "states.safetensors", tmp_path / "kept"
    rng = np.random.default_rng(2)
    save_file({name: rng.normal(size=(4, 5, D)).astype(np.float32) for name in ("x", "target")}, states)  # no order gives it
    run = [sys.executable, "-m", "dropjax.order", model, "--inputs", states, "--outputs", states, "--checkpoint", kept]
    run = [*map(str, run), "--parts", "4"]
    with subprocess.Popen(
        [*run, "--time-limit", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        while not process.stdout.readline().startswith("descent"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (1, "")
    assert "NOT SOLVED (interrupted)" in said

    record = tmp_path / "record.json"
    done = subprocess.run([*run, "--resume", "--json", str(record)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    first = json.loads(record.read_text())["stages"][0]
    assert (first["name"], first["evaluations"]) == ("descent", 0)  # it was over when the signal came


def test_bad_input_is_one_line(tmp_path):
    model = write_encoder(tmp_path, config=False)
    states = tmp_path / "states.safetensors"
    save_file({"x": np.zeros((2, 3, D), np.float32)}, states)
    bad = tmp_path / "bad.safetensors"
    bad.write_text("nothing")
    (tmp_path / "empty").mkdir()
    from dropjax.order.__main__ import main

    cases = {
        "expected --inputs FILE and --outputs FILE": (model,),
        "expected a config.json beside it, or --heads": (model, "--shuffle", 1),
        "a width that 3 heads divide, got 8": (model, "--shuffle", 1, "--heads", 3),
        "expected a tensor named target or outputs": (model, "--inputs", states, "--outputs", states, "--heads", 2),
        "bad.safetensors: expected a .safetensors file": (bad, "--shuffle", 1),
        "the layers of one encoder": (states, "--shuffle", 1),
        "got nothing there": (tmp_path / "none", "--shuffle", 1),
        "expected a folder with model.safetensors": (tmp_path / "empty", "--shuffle", 1),
    }
    import contextlib
    import io

    from dropjax import InputError

    for message, arguments in cases.items():
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                status = main(list(map(str, arguments)))
            except InputError as error:
                status, _ = 2, said.write(str(error))
            except SystemExit as ended:
                status = ended.code
        assert status == 2
        assert message in said.getvalue()
        assert said.getvalue().strip().count("\n") == 0


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_pretrained_encoder(tmp_path, example, parts):
    assert example("pretrained_encoder").main([str(write_encoder(tmp_path)), "--parts", str(parts), "--seeds", "1"])


@pytest.mark.slow
def test_the_causal_transformer(example, capsys):
    options = ["--blocks", "6", "--width", "16", "--length", "12", "--steps", "30", "--rows", "8", "--time-limit", "3"]
    assert example("causal_transformer").main(options)
    assert "by the loss on the text alone" in capsys.readouterr().out


def test_the_convolutions(example, capsys):
    assert example("convolutions").main(["--blocks", "5", "--channels", "6", "--steps", "20", "--rows", "4", "--naive"])
    assert "plain descent" in capsys.readouterr().out


def test_the_naive_descent_finds_what_one_move_mends(example, capsys):
    w = np.random.default_rng(3).normal(size=(4, 3, 3)).astype(np.float32)
    block = lambda p, x: x + 0.3 * jnp.tanh(x @ p[0])  # noqa: E731
    x = np.ones((2, 3), np.float32)
    common = example("common")
    target = np.asarray(common.run(block, (w,), np.arange(4)[:, None], x))
    common.descend_naively("one exchange", block, (w[[0, 3, 2, 1]],), x, target)
    said = capsys.readouterr().out
    assert "exact" in said
    assert float(said.split("loss ")[1].split(",")[0]) < 1e-12
