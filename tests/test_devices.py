"""The part of benchmarks/devices.py that compares numbers of devices, on virtual ones."""

import builders
import devices
import numpy as np
import pytest

from dropjax.io.converted import write_converted


@pytest.mark.slow
def test_the_same_work_on_one_device_and_on_two(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "PASS_ROWS", 100)
    puzzle, _ = builders.random_puzzle(np.random.default_rng(0))
    path = tmp_path / "puzzle.safetensors"
    write_converted(puzzle, path)
    one, two = devices.compare_counts(path, "cpu", (1, 2))
    assert (one["devices"], two["devices"]) == (1, 2)
    assert all(row[work] > 0 for row in (one, two) for work in devices.WORK)
    header, *rows = capsys.readouterr().out.strip().splitlines()
    assert all(work in header for work in devices.WORK)
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert "1.00 ×    100%" in rows[0]
