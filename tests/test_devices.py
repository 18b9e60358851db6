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
    assert header.split() == ["devices", "work", "seconds", "speed-up", "efficiency"]
    assert [row.split()[0] for row in rows] == ["1"] * 3 + ["2"] * 3
    assert all(work in row for work, row in zip(2 * devices.WORK, rows, strict=True))
    assert all(row.split()[-2:] == ["1.00", "100%"] for row in rows[:3])
