import json
import sys

import pytest
import throughput

from dropjax.make.training import Recipe


@pytest.mark.slow
def test_every_way_solves_what_was_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "RECIPE", Recipe(depth=3, hidden=8, rate=1e-2, epochs=2))
    monkeypatch.setattr(throughput, "WIDTH", 6)
    monkeypatch.setattr(throughput, "ROWS", 300)
    monkeypatch.setattr(throughput.device, "configure", lambda **_: None)  # of this whole process
    report = tmp_path / "report.json"
    monkeypatch.setattr(
        sys, "argv", ["throughput.py", str(tmp_path), "--count", "3", "--processes", "1", "--json", str(report)]
    )
    assert throughput.main() == 0
    rows = {row["way"]: row for row in json.loads(report.read_text())["rows"]}
    assert {way: row["puzzles"] for way, row in rows.items()} == {
        "a process for each": 1,
        "one after another": 3,
        "solve_many": 3,
        "solve_many, processes": 3,
    }
    assert {way: row["solved"] for way, row in rows.items()} == {
        "a process for each": 1,
        "one after another": 3,
        "solve_many": 3,
        "solve_many, processes": 3,
    }
    assert "3 trained stacks of 3 blocks" in capsys.readouterr().out
    made = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(throughput.training, "train", lambda *_: pytest.fail("what was trained is not trained again"))
    assert [path.name for path in throughput.trained(tmp_path, 3)] == made
