"""The scaling benchmark's short form: two small stacks, kept, and gone on with."""

import json
import re
import sys
from pathlib import Path

import pytest
import scaling

from dropjax.runtime import device


@pytest.mark.slow
def test_records_are_kept_and_exponents_fitted(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(device, "configure", lambda *_: None)  # its settings are the process's, and so the other tests'
    monkeypatch.setattr(scaling, "HERE", scaling.Point("planted", 12, 32, 500))
    monkeypatch.setattr(scaling, "LINES", {"L": (6, 12), "d": (32,), "N": (500,)})
    report, figure = tmp_path / "report.json", tmp_path / "figure.png"
    arguments = ["scaling.py", str(tmp_path / "stacks"), "--time-limit", "60", "--json", str(report), "--plot", str(figure)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert scaling.main() == 0
    found = json.loads(report.read_text())
    assert [row["L"] for row in found["rows"]] == [6, 12]
    for row in found["rows"]:
        assert row["right"]
        assert row["outcome"] == "exact"
        assert row["peak_bytes"] > row["data_bytes"]
        assert 0 < row["order"] <= row["total"]
    assert found["exponents"]["L"].keys() == set(scaling.TIMES)
    assert figure.stat().st_size > 0
    assert re.search("planted +12 +32 +500 ", capsys.readouterr().out)
    monkeypatch.setattr(scaling, "record", lambda *_: pytest.fail("it is there"))
    assert scaling.main() == 0


def test_exponents_are_slopes_of_solved_points():
    here = {"kind": "planted", "L": 48, "d": 64, "N": 2000, "outcome": "exact"}
    times = {"pair": 1.0, "order": 1.0, "verify": 1.0, "total": 1.0, "first_order": 1.0}
    rows = [
        {**here, **times},
        {**here, **times, "L": 96, "order": 8.0, "pair": 4.0},
        {**here, **times, "L": 192, "order": 1e6, "pair": 16.0, "outcome": "not_solved"},
    ]
    found = scaling.exponents(rows)
    assert found["L"]["order"] == pytest.approx(3)
    assert found["L"]["pair"] == pytest.approx(2)
    assert "N" not in found
