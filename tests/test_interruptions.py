"""A search that is killed goes on, on a full disk too; so does one of several processes; verification can be cut short.

The first test is the interruptions benchmark's short form: a small search that no order satisfies, killed a few times.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import interruptions
import numpy as np
import pytest
from builders import random_puzzle

from dropjax import console
from dropjax.core.errors import NotWritten
from dropjax.core.stack import replay
from dropjax.io.converted import write_converted
from dropjax.runtime import device, journal
from dropjax.search import verify
from dropjax.search.problem import Problem


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


def test_a_full_disk_is_said_once_and_the_next_write_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    kept = journal.Journal(tmp_path / "kept", {"puzzle": "this"}, every=0, lost=lambda error: said.append(str(error)))
    full = NotWritten("kept: expected a place that can be written, got No space left on device")

    def fail(*_: object) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(journal, "atomic_write", fail)
        for k in range(3):
            assert kept.call(lambda k=k: k, 0, lambda: False) == k
        assert (kept.error, said) == (full, [str(full)])
    kept.write()
    assert kept.error is None
    assert len(journal.read_checkpoint(tmp_path / "kept", {"puzzle": "this"})[0]) == 3


def solved() -> tuple[Problem, np.ndarray, verify.Pass, float]:
    """A solved puzzle of more moves than are evaluated together, its answer, and float32's noise."""
    puzzle, permutation = random_puzzle(np.random.default_rng(5), L=14, d=6, h=9, rows=100)
    problem, arrangement = Problem.of(puzzle.stack(), puzzle.x, puzzle.pred), puzzle.arrangement(permutation)
    passed = verify.full_pass(problem.stack, arrangement, problem.x, problem.pred)
    noise = verify.float32_noise(problem.stack, arrangement, puzzle.x, np.asarray(passed.outputs))
    return problem, arrangement, passed, noise


def test_a_verification_in_full_that_is_stopped_is_the_fast_one(monkeypatch: pytest.MonkeyPatch):
    problem, arrangement, passed, noise = solved()
    stack, x, pred, table = problem
    evaluated: list[int] = []
    score = verify.score_moves

    def counted(stack, arrangement, moves, *args, **kwargs):
        evaluated.append(len(moves))
        return score(stack, arrangement, moves, *args, **kwargs)

    monkeypatch.setattr(verify, "score_moves", counted)
    asked = iter([False, True])
    near = partial(verify.near_moves, stack, arrangement, x, pred, table.x, passed, noise)
    stopped = near(screen=False, stopped=lambda: next(asked))
    assert next(asked, None) is None and evaluated[0] == verify.PADDED
    evaluated.clear()
    fast = near(screen=True)
    np.testing.assert_array_equal(stopped.ties, fast.ties)
    evaluated.clear()
    whole = near(screen=False)
    assert sum(evaluated) >= 2 * (13 + 14 * 13 // 2) and max(evaluated) == verify.PADDED
    np.testing.assert_array_equal(whole.ties, fast.ties)


def test_a_replay_is_the_same_in_parts_and_can_be_stopped(monkeypatch: pytest.MonkeyPatch):
    problem, arrangement, _, _ = solved()
    stack, _, _, table = problem
    ordered = verify.arranged_on_host(stack, arrangement)
    error = replay(ordered, table.x) - table.pred
    expected = {"mse": pytest.approx(np.mean(error**2)), "max_abs_error": pytest.approx(np.max(np.abs(error)))}
    monkeypatch.setattr(verify, "PASS_ROWS", 30)
    assert verify.float64_errors(ordered, *table) == expected
    asked = iter([False, True])
    assert verify.float64_errors(ordered, *table, lambda: next(asked)) is None


def start(path: Path, port: int, number: int, *more: str) -> subprocess.Popen[str]:
    """One of two processes that search together."""
    together = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(number)]
    return subprocess.Popen(
        [sys.executable, "-m", "dropjax.solve", str(path), *together, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_in_one_line_and_resume_goes_on(tmp_path: Path, victim: int):
    puzzle, _ = random_puzzle(np.random.default_rng(1), L=6, d=8, h=12, coupling=0, rows=400)
    path, kept = tmp_path / "puzzle.safetensors", tmp_path / "kept"
    hopeless = dataclasses.replace(puzzle, pred=np.random.default_rng(0).permutation(puzzle.pred))
    write_converted(hopeless, path)
    port = free_port()
    processes = [start(path, port, k, "--checkpoint", str(kept)) for k in range(2)]
    while not kept.exists():
        assert [process.poll() for process in processes] == [None, None], "ended before it could be killed"
        time.sleep(0.1)
    processes[victim].send_signal(signal.SIGKILL)
    _, err = processes[1 - victim].communicate(timeout=60)
    assert processes[1 - victim].returncode == console.FAULT
    assert err.startswith("error: ") and err.count("\n") == 1 and "--resume goes on" in err
    processes[victim].communicate()
    before = kept.read_bytes()
    port = free_port()
    processes = [start(path, port, k, "--checkpoint", str(kept), "--resume", "--time-limit", "30") for k in range(2)]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [console.NOT_SOLVED] * 2, ends
    assert [err for _, err in ends] == ["", ""]
    assert kept.read_bytes() != before
