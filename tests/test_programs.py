import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from dropjax.runtime import programs
from dropjax.runtime.programs import program as as_program


class Scaled(NamedTuple):
    values: jax.Array
    total: jax.Array


TRACES: list[int] = []


def scaled(x, by, *, power=1):
    TRACES.append(power)
    return Scaled(by["factor"] * x**power, jnp.sum(x))


@pytest.fixture
def decorate():
    """A function that makes what a new process would have."""
    return lambda: as_program(static_argnames=("power",))(scaled)


@pytest.fixture
def cache(tmp_path):
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


ARGUMENTS = (np.arange(3, dtype=np.float32), {"factor": np.float32(2)})


def traced(program, *args, **kwargs) -> tuple[Scaled, bool]:
    """What the program returns, and whether the function's own lines were traced for it."""
    before = len(TRACES)
    return program(*args, **kwargs), len(TRACES) > before


def check(result, power=1):
    assert isinstance(result, Scaled)
    np.testing.assert_array_equal(result.values, 2 * np.arange(3) ** power)
    assert float(result.total) == 3


def test_a_later_process_traces_nothing(decorate, cache):
    result, was_traced = traced(decorate(), *ARGUMENTS)
    check(result)
    assert was_traced
    result, was_traced = traced(decorate(), *ARGUMENTS)
    check(result)
    assert not was_traced
    result, was_traced = traced(decorate(), *ARGUMENTS, power=2)
    check(result, power=2)
    assert was_traced


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:]])
def test_a_damaged_program_is_traced_again(decorate, cache, damage):
    check(decorate()(*ARGUMENTS))
    (path,) = cache.glob("dropjax-scaled-*")
    path.write_bytes(damage(path.read_bytes()))
    result, was_traced = traced(decorate(), *ARGUMENTS)
    check(result)
    assert was_traced
    assert not traced(decorate(), *ARGUMENTS)[1]


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only the administrator gives files away")
def test_a_program_that_another_user_wrote_is_not_run(decorate, cache):
    decorate()(*ARGUMENTS)
    (path,) = cache.glob("dropjax-scaled-*")
    os.chown(path, 12345, 12345)
    result, was_traced = traced(decorate(), *ARGUMENTS)
    check(result)
    assert was_traced


def test_what_is_loaded_is_not_compiled(decorate, cache, monkeypatch):
    check(decorate()(*ARGUMENTS))
    monkeypatch.setattr(programs, "_compile", lambda *_: pytest.fail("it was compiled again"))
    check(decorate()(*ARGUMENTS))


def test_what_the_device_refuses_is_compiled_again(decorate, cache, monkeypatch):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("made for another device")

    check(decorate()(*ARGUMENTS))
    monkeypatch.setattr(serialize_executable, "deserialize_and_load", refuse)
    result, was_traced = traced(decorate(), *ARGUMENTS)
    check(result)
    assert was_traced


def test_what_the_device_cannot_give_is_not_kept(decorate, cache, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Compilation does not support serialization")

    monkeypatch.setattr(serialize_executable, "serialize", refuse)
    check(decorate()(*ARGUMENTS))
    assert list(cache.glob("dropjax-*")) == []


def test_a_program_that_calls_a_library_is_not_kept(cache):
    # In another process the library would not be known to the device before the program is lowered.
    @as_program()
    def root(x):
        return jnp.linalg.cholesky(x)

    np.testing.assert_allclose(root(4 * np.eye(3, dtype=np.float32)), 2 * np.eye(3))
    assert list(cache.glob("dropjax-*")) == []


def test_other_flags_and_other_processors_are_other_programs(decorate, cache, monkeypatch):
    def kept() -> int:
        programs._machine.cache_clear()
        check(decorate()(*ARGUMENTS))
        return len(list(cache.glob("dropjax-scaled-*")))

    assert [kept(), kept()] == [1, 1]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert kept() == 2
    monkeypatch.setattr(programs, "_processor", lambda: ("another",))
    assert kept() == 3
    monkeypatch.undo()
    assert kept() == 3


def test_other_source_is_another_program(decorate, cache, monkeypatch):
    check(decorate()(*ARGUMENTS))
    monkeypatch.setattr(programs, "source", lambda package: "changed")
    _, was_traced = traced(decorate(), *ARGUMENTS)
    assert was_traced


@pytest.fixture
def own_cache_of_jax(cache, monkeypatch):
    """The folder, in which JAX keeps even the smallest programs as well."""
    settings = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: jax.config.values[name] for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield cache
    for name, value in before.items():
        jax.config.update(name, value)


def test_what_came_from_jaxs_own_cache_is_not_kept_again(decorate, own_cache_of_jax):
    # XLA would write a program that cannot be run.
    check(decorate()(*ARGUMENTS))
    (path,) = own_cache_of_jax.glob("dropjax-scaled-*")
    assert list(own_cache_of_jax.glob("jit_scaled*"))
    path.unlink()
    for _ in range(2):
        result, was_traced = traced(decorate(), *ARGUMENTS)
        check(result)
        assert was_traced
    assert not path.exists()


def test_what_an_older_source_left_in_jaxs_own_cache_is_not_taken(decorate, own_cache_of_jax, monkeypatch):
    check(decorate()(*ARGUMENTS))
    monkeypatch.setattr(programs, "source", lambda package: "changed")
    for traces in (True, False):
        result, was_traced = traced(decorate(), *ARGUMENTS)
        check(result)
        assert was_traced == traces
    assert len(list(own_cache_of_jax.glob("dropjax-scaled-*"))) == 2


@pytest.fixture
def no_cache():
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_cache")
def test_without_a_cache_nothing_is_written(decorate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(decorate()(*ARGUMENTS))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_keeps_nothing(decorate, tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file" / "cache"))
    try:
        check(decorate()(*ARGUMENTS))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_inside_another_trace_it_is_traced_with_it(decorate, cache):
    program = decorate()
    result = jax.jit(lambda x: program(x, {"factor": jnp.float32(2)}))(ARGUMENTS[0])
    check(result)
    assert list(cache.glob("dropjax-scaled-*")) == []


@pytest.mark.usefixtures("no_cache")
def test_prepared_in_the_background_it_is_traced_once_and_not_run(decorate):
    program = decorate()
    with ThreadPoolExecutor(2) as pool:
        prepared = [pool.submit(program.prepare, *ARGUMENTS) for _ in range(2)]
        result = program(*ARGUMENTS)
    assert [future.result() for future in prepared] == [None, None]
    check(result)
    assert not traced(program, *ARGUMENTS)[1]
    before = len(TRACES)
    fresh = decorate()
    fresh.prepare(*ARGUMENTS)
    fresh.prepare(*ARGUMENTS)
    check(fresh(*ARGUMENTS))
    assert len(TRACES) == before + 1


def test_a_program_that_does_not_compile_says_so_each_time():
    @as_program()
    def wrong(x):
        return x + jnp.ones(len(x) + 1)

    for _ in range(2):
        with pytest.raises(TypeError, match="add got incompatible shapes"):
            wrong(np.ones(3, np.float32))


def test_the_source_is_every_file_of_the_package_however_deep(tmp_path):
    (tmp_path / "moves").mkdir()
    (tmp_path / "moves" / "exact.py").write_text("ROWS = 1")
    before = programs.source.__wrapped__(tmp_path)
    (tmp_path / "moves" / "exact.py").write_text("ROWS = 2")
    changed = programs.source.__wrapped__(tmp_path)
    (tmp_path / "moves" / "exact.py").rename(tmp_path / "moves" / "other.py")
    assert len({before, changed, programs.source.__wrapped__(tmp_path)}) == 3
    assert len(list(programs.PACKAGE.glob("*/*.py"))) > 10  # dropjax itself has its files below packages
