"""The interruptions benchmark's short form: a small search that no order satisfies, killed a few times."""

import dataclasses
import json
import sys
from pathlib import Path

import interruptions
import numpy as np
import pytest
from builders import random_puzzle

from dropjax.io.converted import write_converted
from dropjax.runtime import device


@pytest.mark.slow
def test_a_killed_search_goes_on_through_the_same_states(tmp_path: Path, monkeypatch):
    puzzle, _ = random_puzzle(np.random.default_rng(5), L=24, d=16, h=24, coupling=0, rows=600)
    hopeless = dataclasses.replace(puzzle, pred=np.random.default_rng(0).permutation(puzzle.pred))
    path, report = tmp_path / "hopeless.safetensors", tmp_path / "report.json"
    write_converted(hopeless, path)
    options = ["--pairing", "ddr", "--kills", "3", "--seconds", "20", "--longest", "8", "--seed", "1", "--json", str(report)]
    monkeypatch.setattr(device, "configure", lambda: None)  # its settings are the process's, and so the other tests'
    monkeypatch.setattr(sys, "argv", ["interruptions.py", str(path), *options])
    assert interruptions.main() == 0
    rows = json.loads(report.read_text())["rows"]
    assert len(rows) == 3
    assert all(row["same"] for row in rows)
    assert any(row["place"] != [0] for row in rows)


def test_another_state_is_noticed(tmp_path: Path):
    recording = interruptions.Recording({"puzzle": "this"})
    recording.call(lambda: np.arange(3), np.arange(3), lambda: False)
    recording.call(lambda: np.arange(4), np.arange(4), lambda: False)
    assert list(recording.digests) == [(1,), (2,)]
    other = interruptions.Recording({"puzzle": "this"})
    other.call(lambda: np.arange(1, 4), np.arange(3), lambda: False)
    assert other.digests[1,] != recording.digests[1,]
