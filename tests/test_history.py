import json

import history
import pytest

NOW = {"warm": 1.2, "empty_cache": 3.0, "solve": 4.0, "verify": 0.5, "swaps": 0.9}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A history of three releases, two of them measured here."""
    monkeypatch.setattr(history, "KEPT", tmp_path)
    here = history.machine()
    for number, machine, warm in (
        ("0.9.0", here, 1.5),
        ("0.10.0", here, 1.4),
        ("0.11.0", {**here, "cores": 1000}, 1.0),
    ):
        of = {"machine": machine, "versions": {"dropjax": number}, "ratios": {**NOW, "warm": warm}}
        (tmp_path / f"{number}.json").write_text(json.dumps(of))
    return tmp_path


def test_ratios_stand_beside_the_last_releases_of_such_a_machine(kept):
    lines = history.table(NOW, history.last_here(history.kept())).splitlines()
    assert lines[0].endswith("of 0.10.0")
    assert lines[1].split()[:3] == ["warm", "1.20", "1.40"]
    assert len(lines) == 1 + len(history.RATIOS)


def test_on_a_machine_without_records_the_ratios_stand_alone(kept, monkeypatch):
    monkeypatch.setattr(history, "machine", lambda: {"processor": "another", "cores": 1})
    lines = history.table(NOW, history.last_here(history.kept())).splitlines()
    assert lines[0].endswith("none kept of such a machine")
    assert lines[1].split()[:2] == ["warm", "1.20"]


def test_a_record_is_read_again_as_it_was_kept(kept):
    path = history.record(NOW)
    assert path.parent == kept and json.loads(path.read_text())["ratios"] == NOW
    assert history.record(NOW) == path  # one for each release and machine
    assert len(history.kept()) == 4


def test_releases_are_drawn(kept):
    history.plot(history.kept(), kept / "drawn.png")
    assert (kept / "drawn.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_everything_that_is_kept_is_measured():
    found = history.of_processes(1) | history.of_kernels(1)
    assert set(found) == set(history.RATIOS)
    assert found["empty_cache"] > 0 and 0 < found["swaps"] < 10
