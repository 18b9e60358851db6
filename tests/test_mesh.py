"""The same answer on one device, on eight, and in two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from builders import random_puzzle

from dropjax.io.converted import write_converted
from dropjax.runtime import mesh

EVERY_WAY = """
import json, sys
import jax
import dropjax
from dropjax.runtime import mesh
paths, answers = sys.argv[1:], []
for sizes in (None, {"rows": 4, "orders": 2}, {"rows": 1, "orders": 8}):
    with jax.set_mesh(mesh.make(sizes)):
        for path in paths:
            for method in ("auto", "paper"):
                solution = dropjax.solve(dropjax.load(path), method=method)
                answers.append([str(sizes), path, method, solution.permutation, solution.mse])
print(json.dumps(answers))
"""


def dropped(folder: Path, **changes) -> tuple[Path, list[int]]:
    puzzle, permutation = random_puzzle(np.random.default_rng(1), **{"L": 6, "d": 8, "h": 12, **changes})
    path = folder / f"{len(changes)}-{puzzle.x.shape[0]}.safetensors"
    write_converted(puzzle, path)
    return path, list(permutation)


def environment(devices: int) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def test_eight_devices_find_what_one_finds(tmp_path: Path):
    # 333 rows cannot be divided by eight.
    puzzles = dict(dropped(tmp_path, rows=rows) for rows in (400, 333))
    run = subprocess.run(
        [sys.executable, "-c", EVERY_WAY, *map(str, puzzles)],
        capture_output=True,
        text=True,
        env=environment(8),
        timeout=500,
    )
    assert run.returncode == 0, run.stderr
    answers = json.loads(run.stdout)
    assert len(answers) == 3 * 2 * 2
    for sizes, path, method, permutation, mse in answers:
        assert permutation == puzzles[Path(path)], (sizes, path, method)
        assert mse < 1e-9


def test_eight_devices_go_up_the_ladder(tmp_path: Path):
    path, permutation = dropped(tmp_path, rows=1500, coupling=0)
    command = [sys.executable, "-m", "dropjax.solve", str(path), "--mesh", "rows=8", "--json", str(tmp_path / "found.json")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(8), timeout=500)
    assert run.returncode == 0, run.stderr
    assert "least squares" in run.stdout
    assert json.loads((tmp_path / "found.json").read_text())["permutation"] == permutation


def test_two_processes_find_what_one_finds(tmp_path: Path):
    path, permutation = dropped(tmp_path, rows=400)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dropjax.solve", str(path), *together, str(k), "--out", str(tmp_path / f"result {k}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(2),
        )
        for k in range(2)
    ]
    (first, first_err), (second, second_err) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], first_err + second_err
    assert f"permutation: {','.join(map(str, permutation))}" in first
    assert "permutation" not in second
    assert (tmp_path / "result 0" / "solution.json").exists()
    assert not (tmp_path / "result 1").exists()


def test_without_a_mesh_everything_is_left_alone():
    assert not mesh.is_set()
    assert mesh.make() is None
    a = np.arange(6.0).reshape(3, 2)
    assert mesh.spread(a, mesh.ROWS) is a  # pyright: ignore[reportArgumentType]
    assert mesh.agreed(3) == 3
    assert mesh.size(mesh.ORDERS) == 1
    np.testing.assert_array_equal(mesh.fetch(jax.device_put(a)), a)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--mesh", "rows=3"], "expected a mesh of 1, as many devices as there are, got rows 3 × orders 1"),
        (["--mesh", "rows"], "such as rows=4,orders=2, got 'rows'"),
        (["--mesh", "columns=2"], "got 'columns=2'"),
        (["--mesh", "rows=0"], "got 'rows=0'"),
        (["--num-processes", "2"], "go with --coordinator"),
        (["--coordinator", "nowhere"], "--coordinator"),
    ],
)
def test_bad_meshes_are_one_line(args: list[str], words: str):
    run = subprocess.run([sys.executable, "-m", "dropjax.solve", *args], capture_output=True, text=True, timeout=100)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
    assert words in run.stderr
