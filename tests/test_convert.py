"""Pieces as people save them come out as the float32 arrays they hold."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import corpus
import mutations
import numpy as np
import pytest
import torch
from builders import random_puzzle, same
from corpus import ODD
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from dropjax.core.errors import InputError
from dropjax.core.puzzle import Puzzle
from dropjax.io import pth, pytorch
from dropjax.io.folders import write_folder
from dropjax.io.loading import load

w = torch.randn(7, 5)
b = torch.randn(7)
both = torch.cat([w.flatten(), b])

SAVED = {
    "plain": {"weight": w, "bias": b},
    "a prefix": {"layer.weight": w, "layer.bias": b},
    "a long prefix": {"module.0.inp.weight": w, "module.0.inp.bias": b},
    "parameters": {"weight": torch.nn.Parameter(w), "bias": torch.nn.Parameter(b)},
    "nested": {"state_dict": {"weight": w, "bias": b}, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": w}}}},
    "nested twice": {"model": {"state_dict": {"weight": w, "bias": b}}},
    "other entries": {"weight": w, "bias": b, "epoch": 3, "scale": torch.ones(1)},
    "not contiguous": {"weight": w.T.contiguous().T, "bias": b},
    "views of larger storage": {"weight": torch.cat([w, w])[7:], "bias": torch.stack([b, b], dim=1)[:, 1]},
    "shared storage": {"weight": both[:35].view(7, 5), "bias": both[35:]},
    "needing gradients": {"weight": w.clone().requires_grad_(), "bias": b.clone().requires_grad_()},
}


@pytest.mark.parametrize("old", [False, True], ids=["archive", "bare pickle"])
@pytest.mark.parametrize("name", SAVED)
def test_every_way_of_saving_reads_the_same(tmp_path: Path, name: str, old: bool):
    torch.save(SAVED[name], tmp_path / "piece_0.pth", _use_new_zipfile_serialization=not old)
    weight, bias, note = pytorch.read_pth(tmp_path / "piece_0.pth")
    assert note is None
    assert bias is not None
    assert (weight.dtype, bias.dtype) == (np.float32, np.float32)
    assert np.array_equal(weight, w.numpy())
    assert np.array_equal(bias, b.numpy())
    assert weight.flags.c_contiguous
    assert weight.flags.owndata


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_precisions_are_cast_and_said_to_be(tmp_path: Path, dtype: str):
    state = {"weight": w.to(getattr(torch, dtype)), "bias": b}
    torch.save(state, tmp_path / "piece_0.pth")
    weight, _, note = pytorch.read_pth(tmp_path / "piece_0.pth")
    assert note == f"cast from {dtype} to float32"
    assert np.array_equal(weight, state["weight"].float().numpy())


def test_a_layer_without_a_bias(tmp_path: Path):
    torch.save(torch.nn.Linear(5, 7, bias=False).state_dict(), tmp_path / "piece_0.pth")
    assert pytorch.read_pth(tmp_path / "piece_0.pth")[1:] == (None, None)


floats = st.floats(width=32, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(weight=st_numpy.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=floats))
def test_pieces_round_trip_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, weight: np.ndarray):
    path = tmp_path_factory.mktemp("piece") / "piece_0.pth"
    pytorch.write_pth(path, weight, weight[:, 0])
    back, bias, _ = pytorch.read_pth(path)
    assert bias is not None
    assert back.tobytes() == weight.tobytes()
    assert bias.tobytes() == weight[:, 0].tobytes()


ARCHIVES = [name for name, edit in ODD.items() if name not in corpus.WRITTEN and name not in ("stray files", "gzip")]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", [name for name in ARCHIVES if "Parquet" not in name and "safetensors" not in name])
def test_every_dialect_is_read_as_pytorch_reads_it(tmp_path: Path, name: str):
    puzzle, _ = random_puzzle(np.random.default_rng(0), L=2, d=5, h=7, rows=1)
    write_folder(puzzle, tmp_path / "folder")
    ODD[name](tmp_path / "folder")
    paths = [path for path in (tmp_path / "folder").rglob("*") if path.suffix in (".pth", ".pt")]
    for path in paths:
        read = torch.load(path, map_location="cpu", weights_only=not name.startswith("pickled by"))
        assert mutations.alike(pytorch.load_pth(path), read)
    assert paths or name == "all layers in bfloat16"


@pytest.mark.parametrize("dtype", sorted(pth.DTYPES))
@pytest.mark.parametrize("bare", [False, True], ids=["", "no checksums"])
def test_every_type_is_read_as_pytorch_reads_it(tmp_path: Path, dtype: str, bare: bool):
    numbers = (torch.randn(3, 4, 5) * 9).to(getattr(torch, dtype))
    state = {"a": numbers, "view": numbers[1:, :, 2], "turned": numbers.mT, "one": numbers[0, 0, 0], "none": numbers[:0]}
    with corpus.no_checksums() if bare else nullcontext():
        torch.save({**state, "repeated": numbers[0, 0, 0].expand(2, 3)}, tmp_path / "it.pth")
    ours = pth.read(tmp_path / "it.pth")
    assert mutations.alike(ours, torch.load(tmp_path / "it.pth", weights_only=dtype[:4] != "uint" or dtype == "uint8"))
    assert ours["a"].is_floating == numbers.is_floating_point()


def test_a_reading_that_differs_by_a_bit_is_noticed():
    ours = pth.Tensor("float32", (2,), np.array([1, 2], np.float32))
    assert mutations.alike({"a": ours}, {"a": torch.tensor([1.0, 2.0])})
    for other in (torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 2.0]).double()):
        assert not mutations.alike({"a": ours}, {"a": other})
    assert not mutations.alike({"b": ours}, {"a": torch.tensor([1.0, 2.0])})


def test_an_archive_is_mapped_and_not_read(tmp_path: Path):
    torch.save({"weight": w}, tmp_path / "it.pth")
    values = pth.read(tmp_path / "it.pth")["weight"].values
    assert not values.flags.owndata
    assert not values.flags.writeable


def test_without_torch_archives_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save(SAVED["plain"], tmp_path / "piece_0.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    weight, bias, _ = pytorch.read_pth(tmp_path / "piece_0.pth")
    assert bias is not None
    assert (weight.tobytes(), bias.tobytes()) == (w.numpy().tobytes(), b.numpy().tobytes())


def test_the_real_puzzle_is_read_without_torch(real_folder: Path, real_puzzle: Puzzle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert same(load(real_folder), real_puzzle)


def test_without_torch_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save(SAVED["plain"], tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"weight": w.to_sparse()}, tmp_path / "sparse.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, words in (("old", "the format before PyTorch 1.6"), ("sparse", "'torch._utils._rebuild_sparse_tensor'")):
        with pytest.raises(InputError, match=rf"expected PyTorch to read .*{words}.*: pip install 'dropjax\[convert\]'"):
            pytorch.read_pth(tmp_path / f"{name}.pth")
    with pytest.raises(InputError, match=r"expected PyTorch to write .*pip install 'dropjax\[convert\]'"):
        pytorch.write_pth(tmp_path / "new.pth", w.numpy(), None)


def test_importing_the_library_imports_neither_torch_nor_pandas():
    code = "import sys, dropjax, dropjax.io.loading; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
