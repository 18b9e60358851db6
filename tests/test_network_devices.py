"""`order` where JAX sees several devices: rows are spread over them, and the answer is the same."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
sys.path.insert(0, {tests!r})
import jax, numpy as np, networks, dropjax
from dropjax.runtime import mesh
assert len(jax.devices()) == 2
rng = np.random.default_rng(0)
block, parts, x = networks.plain(rng, L=7, d=8, rows=8)
parts, target, answer = networks.dropped(rng, block, parts, x)
alone = dropjax.order(block, parts, x, target)
with jax.set_mesh(mesh.make()):
    spread = dropjax.order(block, parts, x, target)
assert (alone.arrangement == answer).all() and (spread.arrangement == answer).all()
print(alone.outcome, spread.outcome)
"""


def test_rows_on_two_devices_give_the_same_answer():
    tests = str(Path(__file__).parent)
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    code = CODE.format(tests=tests)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout) == (0, "exact exact\n"), done.stderr
