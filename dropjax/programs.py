"""Programs that a later process need not trace again.

JAX's persistent cache keeps what XLA compiled, but finds it only by the program's StableHLO: tracing and lowering come
first, and for this package's kernels take several times what fetching does. So the StableHLO is kept beside the compiled
programs (`jax.export`), under the names, shapes and source it came from.
"""

import hashlib
import inspect
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax import export
from jax.core import Tracer

R = TypeVar("R")

DIGEST = hashlib.sha256().digest_size


QUICK: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False}
"""Compiles in two thirds of the time on a CPU, to programs that take up to a tenth longer."""


def kept(
    static_argnames: Sequence[str] = (), results: Sequence[type] = (), quick: bool = False
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """`jax.jit`, and where a persistent compilation cache is set, the traced program is kept in the same folder.

    `results` are the NamedTuples that occur in what the function returns; `quick` is for large programs that run little.
    Inside another traced function, and on arrays that are spread over devices, it is `jax.jit` alone.
    """
    for result in results:
        export.register_namedtuple_serialization(result, serialized_name=f"dropjax.{result.__qualname__}")

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        jitted = jax.jit(function, static_argnames=tuple(static_argnames))
        signature = inspect.signature(function)
        ready: dict[tuple, Callable] = {}

        @wraps(function)
        def call(*args, **kwargs) -> R:
            folder = jax.config.values["jax_compilation_cache_dir"]
            if not folder or not all(map(_plain, jax.tree.leaves((args, kwargs)))):
                return jitted(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            static = {name: bound.arguments.pop(name) for name in static_argnames}
            leaves, tree = jax.tree.flatten(bound.arguments)
            shapes = tuple((np.shape(leaf), str(jax.dtypes.canonicalize_dtype(leaf.dtype))) for leaf in leaves)
            key = (folder, *static.values(), tree, shapes)
            if key not in ready:
                of_leaves = lambda *leaves: function(**jax.tree.unflatten(tree, leaves), **static)  # noqa: E731
                specs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
                program = _load_or_trace(function.__name__, Path(folder), str(key[1:]), of_leaves, specs)
                ready[key] = _compile(function.__name__, program, specs, quick)
            return ready[key](*leaves)

        return call

    return decorate


def _plain(leaf: object) -> bool:
    """Whether it is a value on one device, and no tracer."""
    if isinstance(leaf, Tracer):
        return False
    return not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1


def _load_or_trace(name: str, folder: Path, key: str, of_leaves: Callable, specs: Sequence) -> export.Exported:
    """The program as a function of its leaves: from the folder where it is there, else traced and put there."""
    identity = f"{name} {key} {jax.default_backend()} {jax.__version__} {_source()}"
    path = folder / f"dropjax-{name}-{hashlib.sha256(identity.encode()).hexdigest()}"
    program = _load(path)
    if program is None:
        program = export.export(jax.jit(of_leaves))(*specs)
        _save(path, bytes(program.serialize()))
    return program


def _compile(name: str, program: export.Exported, specs: Sequence, quick: bool) -> Callable:
    run = lambda *leaves: program.call(*leaves)  # noqa: E731
    run.__name__ = name  # for JAX's logs
    lowered = jax.jit(run).lower(*specs)
    if quick and jax.default_backend() == "cpu":
        # An XLA may come that does not know the option.
        with suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(QUICK)
    return lowered.compile()


def _load(path: Path) -> export.Exported | None:
    """The kept program; None where there is none, or one that was damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, program = content[:DIGEST], content[DIGEST:]
    return export.deserialize(bytearray(program)) if hashlib.sha256(program).digest() == digest else None


def _save(path: Path, program: bytes) -> None:
    """Under its final name only when whole; a folder that cannot be written to keeps nothing."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(program).digest() + program)
        Path(temporary).replace(path)


@cache
def _source() -> str:
    """Hash of this package's source: another version's programs are not these."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
