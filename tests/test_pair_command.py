"""`python -m dropjax.pair`: verdicts, exit statuses, records, and one line for whatever is wrong."""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import dropjax
from dropjax.pairing.portfolio import pair


def checkpoint(folder: Path, coupling: float, gated: bool = False, L=6, d=12, h=40) -> Path:
    rng = np.random.default_rng(1)
    arrays = {}
    for k in range(L):
        up, gate = rng.normal(size=(2, h, d))
        down = rng.normal(size=(d, h)) - coupling * up.T
        arrays[f"layers.{k}.mlp.up_proj.weight"] = up
        arrays[f"layers.{k}.mlp.down_proj.weight"] = down - coupling * gate.T if gated else down
        if gated:
            arrays[f"layers.{k}.mlp.gate_proj.weight"] = gate + coupling * up
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(a.astype(np.float32)) for name, a in arrays.items()}, path)
    return path


def run(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dropjax.pair", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_pairs_that_show_are_found_checked_and_written(tmp_path):
    pytest.importorskip("matplotlib")
    path, out = checkpoint(tmp_path, 1.0), tmp_path / "deep" / "result"
    done = run(path, "--check", "--baselines", "--out-dir", out, "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "verdict: paired" in done.stdout
    assert "check: 6 of 6 right; guessing gets 1 of 6 right" in done.stdout
    assert "untrained weights of the same shapes: no signal" in done.stdout
    record = json.loads((out / "pairing.json").read_text())
    assert record == json.loads((tmp_path / "a.json").read_text())
    assert (record["verdict"], record["correct"], record["total"]) == ("paired", 6, 6)
    assert record["signal"] in record["separations"]
    assert record["baselines"]["untrained"]["verdict"] == "no signal"
    for row in record["pairs"]:
        assert row["in"].replace("up", "down") == row["out"]
        assert row["margin"] == pytest.approx(row["score"] - row["runner_up"])
    assert sorted(p.name for p in out.iterdir()) == ["heatmap.png", "pairing.json"]
    assert (out / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_gated_mlps_are_paired_three_ways(tmp_path):
    done = run(checkpoint(tmp_path, 1.0, gated=True), "--check", "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "a.json").read_text())
    assert set(record["pairings"]) == {"gate/out", "gate/up"}
    assert [one["correct"] for one in (record, *record["pairings"].values())] == [6, 6, 6]
    assert record["consistent"] == 6
    assert "6 have an up and a gate" in done.stdout


def test_untrained_weights_have_no_signal(tmp_path):
    done = run(checkpoint(tmp_path, 0.0), "--quiet")
    assert (done.returncode, done.stderr) == (1, "")
    assert len(done.stdout.splitlines()) == 6


def test_what_is_wrong_takes_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    path = checkpoint(tmp_path, 1.0)
    cases = {
        ("nowhere.safetensors",): "nothing there",
        (path, "--in", "*up*"): "both halves",
        (path, "--signal", "astrology"): "invalid choice",
        (path, "--shuffles", "1"): "at least 3",
        (path, "--json", tmp_path): "the other kind",
    }
    for arguments, words in cases.items():
        monkeypatch.setattr(sys, "argv", ["pair", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("dropjax.pair", run_name="__main__")
        printed = capsys.readouterr()
        assert ended.value.code == 2
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert words in printed.err
        assert printed.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_importing_the_command_leaves_the_function_in_place():
    importlib.import_module("dropjax.pair.__main__")
    assert dropjax.pair is pair
