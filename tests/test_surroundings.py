"""The shell, program, account or folder in which dropjax runs does not break it."""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
import pytest
from builders import random_puzzle

import dropjax
from dropjax.io.converted import write_converted
from dropjax.runtime import device
from dropjax.runtime.settings import SETTINGS, others, own_settings

FOREIGN = {
    "enable_x64": True,
    "numpy_dtype_promotion": "strict",
    "numpy_rank_promotion": "raise",
    "disable_jit": True,
    "default_matmul_precision": "bfloat16",
    "default_prng_impl": "rbg",
    "threefry_partitionable": False,
    "debug_nans": True,
    "debug_infs": True,
    "debug_key_reuse": True,
    "check_tracer_leaks": True,
    "transfer_guard_host_to_device": "disallow_explicit",
    "transfer_guard_device_to_device": "disallow_explicit",
    "transfer_guard_device_to_host": "disallow_explicit",
}
"""For each setting, a value that a program may have chosen for itself."""


def alone(**changes: str) -> dict[str, str]:
    """The environment without what this process's surroundings say of folders."""
    kept = {name: value for name, value in os.environ.items() if name not in ("DROPJAX_CACHE_DIR", "XDG_CACHE_HOME")}
    return {**kept, "PYTHONPATH": str(Path(dropjax.__file__).parents[1]), **changes}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    puzzle, permutation = random_puzzle(np.random.default_rng(0), L=5, d=8, h=12, rows=80)
    path = tmp_path_factory.mktemp("puzzle") / "puzzle.safetensors"
    write_converted(puzzle, path)
    return path, ",".join(map(str, permutation))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_foreign_setting_is_set_aside_and_comes_back(name: str):
    with getattr(jax, name)(FOREIGN[name]):
        assert others() == {name: SETTINGS[name]}
        with own_settings():
            assert others() == {}
        assert others() == {name: SETTINGS[name]}
    assert others() == {}


def test_nothing_is_set_where_nothing_is_foreign():
    before = dict(jax.config.values)
    with own_settings():
        assert dict(jax.config.values) == before


@pytest.mark.slow
def test_all_foreign_settings_at_once_change_no_answer():
    """Each product, seed and thread of a search, and of pairing alone, with nothing compiled before."""
    puzzle, permutation = random_puzzle(np.random.default_rng(3), L=7, d=6, h=11, coupling=0.5, rows=90)
    jax.clear_caches()
    with ExitStack() as program:
        for name, value in FOREIGN.items():
            program.enter_context(getattr(jax, name)(value))
        solution = dropjax.solve(puzzle)
        pairing = dropjax.pair(puzzle.w_in, puzzle.w_out, signal="auto")
        many = next(iter(dropjax.solve_many([puzzle])))
    assert solution.permutation == many.permutation == permutation
    assert solution.stack.w_in.dtype == np.float32
    np.testing.assert_array_equal(pairing.partner, dropjax.pair(puzzle.w_in, puzzle.w_out, signal="auto").partner)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["solve", "pair", "train", "report"])
def test_a_command_under_all_of_them_from_the_shell(module: str, converted: tuple[Path, str], tmp_path: Path):
    shell = {f"JAX_{name.upper()}": str(value) for name, value in FOREIGN.items()}
    path, text = converted
    shape = ["--depth", "2", "--hidden", "7", "--width", "5", "--rows", "60", "--epochs", "2"]
    arguments = {
        "solve": [path, "--quiet", "--no-cache"],
        "pair": [path, "--quiet"],
        "train": [tmp_path / "new.safetensors", "--quiet", *shape],
        "report": [path, tmp_path / "page", "--quiet", "--train", "none", "--no-cache"],
    }
    command = [sys.executable, "-m", f"dropjax.{module}", *map(str, arguments[module])]
    env = alone(**shell, DROPJAX_CACHE_DIR=str(tmp_path / "cache"))
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=500)
    assert run.stderr == "" or (module == "pair" and run.stderr.count("\n") == 1)
    assert run.returncode == 0 or module == "pair"
    assert module != "solve" or run.stdout == text + "\n"


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DROPJAX_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert device.cache_folder() is None
    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    device.configure()
    assert asked == {"jax_compilation_cache_dir": None}
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert device.cache_folder() == Path("/somewhere/dropjax")
    monkeypatch.setenv("DROPJAX_CACHE_DIR", "/elsewhere")
    assert device.cache_folder() == Path("/elsewhere")


NOBODY = ["unshare", "--user", "--map-user=12345"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("as_whom", "home"), [(NOBODY, None), ([], "/proc/nothing"), ([], "{file}")], ids=["nobody", "no folder", "a file"]
)
def test_a_user_without_a_home(as_whom: list[str], home: str | None, converted: tuple[Path, str], tmp_path: Path):
    if as_whom and (shutil.which(as_whom[0]) is None or subprocess.run([*as_whom, "true"], capture_output=True).returncode):
        pytest.skip("no user namespaces here")
    (tmp_path / "file").write_text("")
    env = alone()
    env.pop("HOME", None)
    if home is not None:
        env["HOME"] = home.format(file=tmp_path / "file")
    path, text = converted
    command = [*as_whom, sys.executable, "-m", "dropjax.solve", str(path), "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, text + "\n", "")


@pytest.mark.parametrize("names", [("dropjax",), ("dropjax", "dropjax/dropjax")])
def test_beside_a_folder_of_its_name_it_is_still_the_package(names: tuple[str, ...], tmp_path: Path):
    """A clone's parent folder has such a folder: Python takes it for a package unless it finds another one first."""
    for name in names:
        (tmp_path / name).mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import dropjax; print(dropjax.Puzzle.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    if "No module named" in run.stderr:
        pytest.skip("dropjax is not installed here")
    assert (run.stdout, run.stderr) == ("Puzzle\n", "")
