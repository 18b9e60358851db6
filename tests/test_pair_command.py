"""`python -m dropjax.pair`: verdicts, exit statuses, records, and one line for whatever is wrong."""

import importlib
import json
import runpy
import sys
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

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


run = partial(commands.run, "pair")


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


def changed(path: Path, change) -> Path:
    arrays = load_file(path)
    save_file({name: np.ascontiguousarray(a) for name, a in change(arrays).items()}, path)
    return path


def test_what_was_chosen_and_what_was_not_is_said(tmp_path):
    more = {"layers.0.attn.q_proj.weight": np.ones((4, 4), np.float32), "ids": np.ones((1, 4), np.int64)}
    path = changed(checkpoint(tmp_path, 1.0), lambda arrays: arrays | more)
    done = run(path, "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    first, told, left, unread, *_ = done.stdout.splitlines()
    assert first == "model.safetensors: 6 MLPs, d = 12, h = 40"
    assert told == "in and out: from names; stored [out, in], by default"
    assert (left, unread) == ("left out: 1 of attention", "not read: 1 of int64")
    chosen = json.loads((tmp_path / "a.json").read_text())["selection"]
    assert chosen["mlps"] == 6
    assert chosen["chosen"] == {
        kind: [f"layers.{k}.mlp.{name}.weight" for k in range(6)] for kind, name in (("in", "up_proj"), ("out", "down_proj"))
    }
    assert (chosen["direction"], chosen["stored"], chosen["whole"]) == ("names", "[out, in]", True)
    assert (chosen["skipped"], chosen["unreadable"]) == ({"of attention": 1}, {"int64": 1})


def test_a_direction_that_nothing_tells_is_unknown(tmp_path):
    path = changed(
        checkpoint(tmp_path, 1.0),
        lambda arrays: {n.replace("up_proj", "a").replace("down_proj", "b"): x for n, x in arrays.items()},
    )
    done = run(path, "--json", tmp_path / "a.json")
    assert done.returncode == 0
    assert "in and out: unknown (assumed from h > d)" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["selection"]["direction"] == "unknown"


def test_a_verdict_is_about_what_could_be_read_and_no_more(tmp_path):
    def quantised(arrays):
        return {name: a.astype(np.int8) if ".4." in name or ".5." in name else a for name, a in arrays.items()}

    done = run(changed(checkpoint(tmp_path, 1.0), quantised), "--check", "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (1, "")
    assert "model.safetensors: 4 MLPs" in done.stdout
    assert "4 of int8; 4 matrices (such as layers.4.mlp.down_proj.weight) with the name of a half of an MLP" in done.stdout
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["verdict"], record["correct"], record["total"], record["selection"]["whole"]) == ("paired", 4, 4, False)
    assert next(line for line in done.stdout.splitlines() if line.startswith("verdict")).endswith("only (4 not read)")


def test_averaged_copies_are_left_out_and_the_others_paired(tmp_path):
    def both(arrays):
        rng = np.random.default_rng(2)
        averaged = {f"ema.{n}": a + rng.normal(scale=0.02, size=a.shape).astype(np.float32) for n, a in arrays.items()}
        return averaged | {f"model.{name}": a for name, a in arrays.items()}

    done = run(changed(checkpoint(tmp_path, 1.0), both), "--check", "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out as twins: 6 MLPs, such as ema.layers.0.mlp.up_proj.weight of model.layers.0" in done.stdout
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["correct"], record["total"], len(record["selection"]["twins"])) == (6, 6, 6)


def test_numbers_that_are_none_are_no_fault_of_the_signal(tmp_path):
    def broken(arrays):
        arrays["layers.2.mlp.up_proj.weight"][99, 3] = np.nan
        return arrays

    done = run(changed(checkpoint(tmp_path, 1.0, h=100), broken), "--signal", "ddr")
    assert done.returncode == 2
    assert "layers.2.mlp.up_proj.weight: expected finite" in done.stderr
    assert "--signal" not in done.stderr


def test_importing_the_command_leaves_the_function_in_place():
    importlib.import_module("dropjax.pair.__main__")
    assert dropjax.pair is pair


@pytest.mark.slow
def test_every_path_that_is_there_has_a_verdict_of_its_own(tmp_path):
    def with_attention(arrays):
        rng = np.random.default_rng(4)
        for k in range(6):
            key, value = rng.normal(size=(2, 16, 12))
            parts = {"q": key + rng.normal(size=(16, 12)), "k": key, "v": value, "o": rng.normal(size=(12, 16))}
            arrays |= {f"layers.{k}.attn.{n}_proj.weight": a.astype(np.float32) for n, a in parts.items()}
        return arrays

    path = changed(checkpoint(tmp_path, 1.0), with_attention)
    before = run(path, "--check", "--json", tmp_path / "mlps.json")
    done = run(path, "--path", "all", "--check", "--baselines", "--out-dir", tmp_path / "out")
    assert (before.returncode, done.returncode, done.stderr) == (0, 1, "")
    record = json.loads((tmp_path / "out" / "pairing.json").read_text())["paths"]
    assert {kind: (one["verdict"], one["baselines"]["untrained"]["verdict"]) for kind, one in record.items()} == {
        "in-out": ("paired", "no signal"),
        "query-key": ("paired", "no signal"),
        "value-output": ("no signal", "no signal"),
        "layer": ("no signal", "no signal"),
    }
    assert [record[kind]["correct"] for kind in ("in-out", "query-key")] == [6, 6]
    assert record["in-out"]["pairs"][0].keys() == json.loads((tmp_path / "mlps.json").read_text())["pairs"][0].keys()
    assert "not there, or not found by names: up-out" in done.stdout
    one = run(path, "--path", "query-key", "--quiet", "--heads", "4", "--signal", "head_traces")
    assert (one.returncode, len(one.stdout.splitlines())) == (0, 6)


def test_what_is_wrong_with_a_path_takes_one_line(tmp_path):
    path = checkpoint(tmp_path, 1.0)
    for arguments, words in {
        ("--path", "query-key"): "at least 2 paths",
        ("--path", "in-out", "--signal", "taps"): "--signal",
        ("--heads", "0"): "at least 1",
        ("--path", "sideways"): "invalid choice",
    }.items():
        done = run(path, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr


@pytest.mark.slow
def test_attention_of_a_layout_that_is_not_known_is_not_left_out_in_silence(tmp_path):
    def with_some(arrays):
        rng = np.random.default_rng(5)
        latent = {f"layers.{k}.self_attn.q_a_proj.weight": rng.normal(size=(4, 12)).astype(np.float32) for k in range(6)}
        return arrays | latent

    path = changed(checkpoint(tmp_path, 1.0), with_some)
    done = run(path, "--path", "all")
    assert (done.returncode, done.stderr) == (1, "")
    line = "called of attention and in no pairing above: 6, such as layers.0.self_attn.q_a_proj.weight (no two layers"
    assert line in done.stdout
    unread = changed(path, lambda arrays: {n: a.astype(np.int8) if "self_attn" in n else a for n, a in arrays.items()})
    assert "(6 of them not read)" in run(unread, "--path", "all").stdout
    assert run(changed(path, lambda a: {n: x for n, x in a.items() if "attn" not in n}), "--path", "all").returncode == 0
