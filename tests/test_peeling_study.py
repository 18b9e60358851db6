"""The short form of benchmarks/peeling.py."""

import json
import sys

import peeling as study
import pytest

from dropjax.make.training import Recipe

DEPTH, DEEPER = 4, 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["planted", "deep"])
def test_the_study_tells_ranks_and_what_is_peeled(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "DEPTH", DEPTH)
    monkeypatch.setattr(study, "HIDDEN", 40)
    monkeypatch.setattr(study, "TABLE", 1200)
    monkeypatch.setattr(study, "KINDS", {"planted": (20, None)})
    deep = Recipe(depth=DEEPER, hidden=10, optimizer="sgd", rate=1e-12, epochs=1)
    monkeypatch.setattr(study, "DEEP", {"deep": (6, deep)})
    monkeypatch.setattr(study.device, "configure", lambda **_: None)  # of this whole process
    report = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["peeling.py", "--only", kind, "--rows", "1000", "--json", str(report)])
    assert study.main() == 0
    rows = json.loads(report.read_text())["rows"]
    ranks, wholes = ([row for row in rows if key in row and row[key] is not None] for key in ("placed", "tau"))
    assert [row["placed"] for row in ranks] == [0]
    for row in ranks:
        assert 0 <= row["rank_by_look"] < row["remaining"]
        assert (row["rank_by_look"] == 0) == (row["rise"] == row["best_rise"])
        assert 0 <= row["beyond_chance"] <= row["remaining"]
    out = capsys.readouterr().out
    assert f"{kind}, 1,000 rows" in out and "nats, best" in out
    if kind == "deep":
        assert ranks[0]["partners_right"] == ranks[0]["remaining"] == DEEPER
        assert wholes == []
    else:
        known, unknown = wholes
        assert (known["pairs_known"], known["pairs_right"], known["tau"]) == (True, DEPTH, 1)
        assert not unknown["pairs_known"] and 0 <= unknown["pairs_right"] <= DEPTH
