"""A solve gives the same answer on one device, on eight, and in two processes."""

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


PARTS = """
import json
import jax
import numpy as np
from dropjax.runtime import mesh
from dropjax.runtime.rows import chunk_size, in_chunks
def part(a):
    return a.sharding.shard_shape(a.shape)
with jax.set_mesh(mesh.make({"rows": 2, "orders": 4})):
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    eight, seven = mesh.put_rows([x])[0], mesh.put_rows([x[:7]])[0]
    print(json.dumps({
        "sizes": [mesh.size(mesh.ROWS), mesh.size(mesh.ORDERS), mesh.size("other")],
        "rows put": part(eight),
        "rows that do not divide": part(seven),
        "put whole": part(mesh.put(x)),
        "orders spread": part(jax.jit(lambda a: mesh.spread(a, mesh.ORDERS))(x)),
        "columns left": part(jax.jit(lambda a: mesh.spread(a, None, mesh.ORDERS))(x)),
        "neither where one does not divide": part(jax.jit(lambda a: mesh.spread(a, mesh.ROWS, mesh.ORDERS))(x)),
        "made whole": part(jax.jit(lambda a: mesh.whole(mesh.spread(a, mesh.ROWS)))(x)),
        "chunks": part(jax.jit(lambda a: in_chunks(a, 6))(eight)),
        "chunk sizes": [chunk_size(7, 4, 1 << 30), chunk_size(7, 4, 12)],
        "fetched": mesh.fetch(eight).tolist() == x.tolist(),
    }))
"""

TOGETHER = """
import json, sys
import jax
import numpy as np
from dropjax.runtime import mesh
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with jax.set_mesh(mesh.make()):
    rows = mesh.put_rows([np.arange(8, dtype=np.float32).reshape(4, 2)])[0]
    print(json.dumps([mesh.agreed(10 + int(sys.argv[2])), mesh.is_first(), mesh.fetch(rows).tolist()]))
"""


def dropped(folder: Path, **changes) -> tuple[Path, list[int]]:
    puzzle, permutation = random_puzzle(np.random.default_rng(1), **{"L": 6, "d": 8, "h": 12, **changes})
    path = folder / f"{len(changes)}-{puzzle.x.shape[0]}.safetensors"
    write_converted(puzzle, path)
    return path, list(permutation)


def environment(devices: int) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_rows_and_orders_are_divided_among_the_devices():
    run = subprocess.run([sys.executable, "-c", PARTS], capture_output=True, text=True, env=environment(8), timeout=200)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {
        "sizes": [2, 4, 1],
        "rows put": [4, 3],
        "rows that do not divide": [7, 3],
        "put whole": [8, 3],
        "orders spread": [2, 3],
        "columns left": [8, 3],
        "neither where one does not divide": [8, 3],
        "made whole": [8, 3],
        "chunks": [2, 3, 3],
        "chunk sizes": [8, 4],
        "fetched": True,
    }


@pytest.mark.slow
def test_two_processes_go_by_the_first_ones_number():
    address = f"127.0.0.1:{free_port()}"
    commands = [[sys.executable, "-c", TOGETHER, address, str(k)] for k in range(2)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(1))
        for command in commands
    ]
    answers = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    rows = np.arange(8.0).reshape(4, 2).tolist()
    assert [json.loads(out.splitlines()[-1]) for out, _ in answers] == [[10, True, rows], [10, False, rows]]


@pytest.mark.slow
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


@pytest.mark.slow
def test_eight_devices_go_up_the_ladder(tmp_path: Path):
    path, permutation = dropped(tmp_path, rows=1500, coupling=0)
    command = [sys.executable, "-m", "dropjax.solve", str(path), "--mesh", "rows=8", "--json", str(tmp_path / "found.json")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(8), timeout=500)
    assert run.returncode == 0, run.stderr
    assert "least squares" in run.stdout
    assert json.loads((tmp_path / "found.json").read_text())["permutation"] == permutation


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path):
    path, permutation = dropped(tmp_path, rows=400)
    together = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id"]
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
    assert mesh.whole((a,))[0] is a
    assert mesh.is_first()
    for put in (mesh.put(a), mesh.put(a, mesh.ROWS), *mesh.put_rows([a])):
        np.testing.assert_array_equal(put, a.astype(np.float32))
        assert len(put.devices()) == 1


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
