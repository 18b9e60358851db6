"""Traced programs that later processes load instead of tracing them again.

JAX's persistent cache keeps what XLA compiled, but finds it only by the program's StableHLO: tracing and lowering come
first, and for this package's kernels take several times what fetching does. So the StableHLO is kept beside the compiled
programs (`jax.export`), under the names, shapes and source it came from.
"""

import hashlib
import inspect
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, update_wrapper
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax import export
from jax.core import Tracer

from dropjax.runtime.settings import own_settings

R = TypeVar("R")

PACKAGE = Path(__file__).parents[1]
"""The folder of all this package's source."""

DIGEST = hashlib.sha256().digest_size


QUICK: dict[str, dict[str, Any]] = {
    "cpu": {
        "xla_cpu_use_fusion_emitters": False,
        "xla_backend_optimization_level": 1,
        "xla_llvm_disable_expensive_passes": True,
    },
    "gpu": {"xla_gpu_autotune_level": 0},
}
"""Compiler options for half the compile time on a CPU. Programs of few rows then run up to a tenth longer, those of many
rows half as long again, because their activations are not spread over the cores. On a GPU compiling takes a quarter of the
time, because no ways to multiply matrices are tried out."""

KERNELS = tuple(map(export.DisabledSafetyCheck.custom_call, ("__gpu$xla.gpu.triton", "triton_kernel_call_ffi")))
"""The custom call of Pallas's kernels. JAX promises to read it only in the same version, which is all that is needed
here."""


class Program(Generic[R]):
    """`jax.jit` of a function, for kernels that a whole command line waits for.

    Where a persistent compilation cache is set, the traced program is kept in the same folder. `prepare` compiles without
    running, and a call meanwhile, from another thread, waits for it. Inside another traced function, and on arrays that are
    spread over devices, it is `jax.jit` alone.
    """

    def __init__(
        self,
        function: Callable[..., R],
        static_argnames: Sequence[str] = (),
        results: Sequence[type] = (),
        quick: bool = False,
    ) -> None:
        """`results` are the NamedTuples that occur in what the function returns; `quick` is for what sees few rows."""
        for result in results:
            export.register_namedtuple_serialization(result, serialized_name=f"dropjax.{result.__qualname__}")
        self._function = function
        self._jitted = jax.jit(function, static_argnames=tuple(static_argnames))
        self._static = tuple(static_argnames)
        self._quick = quick
        self._signature = inspect.signature(function)
        self._compiled: dict[tuple, Future[Callable[..., R]]] = {}
        self._lock = threading.Lock()
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Runs the function."""
        if not all(map(_plain, jax.tree.leaves((args, kwargs)))):
            return self._jitted(*args, **kwargs)
        compiled, leaves = self._for(args, kwargs)
        return compiled(*leaves)

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Compiles for arguments of these shapes, which may be `jax.ShapeDtypeStruct`s; any thread may call this."""
        with own_settings():
            self._for(args, kwargs)

    def _for(self, args: tuple, kwargs: dict) -> tuple[Callable[..., R], list]:
        """Returns the compiled program, whose arguments are leaves, and the leaves of these arguments."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        static = {name: bound.arguments.pop(name) for name in self._static}
        leaves, tree = jax.tree.flatten(bound.arguments)
        shapes = tuple((np.shape(leaf), str(jax.dtypes.canonicalize_dtype(leaf.dtype))) for leaf in leaves)
        folder = jax.config.values["jax_compilation_cache_dir"]
        key = (folder, *static.values(), tree, shapes)
        with self._lock:
            ours = key not in self._compiled
            compiled = self._compiled.setdefault(key, Future())
        if ours:
            name = self._function.__name__
            of_leaves = lambda *leaves: self._function(**jax.tree.unflatten(tree, leaves), **static)  # noqa: E731
            specs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
            try:
                traced = _load_or_trace(name, Path(folder), str(key[1:]), of_leaves, specs).call if folder else of_leaves
                compiled.set_result(_compile(name, traced, specs, self._quick))
            except BaseException as error:
                compiled.set_exception(error)
                del self._compiled[key]
                raise
        return compiled.result(), leaves


def program(
    static_argnames: Sequence[str] = (), results: Sequence[type] = (), quick: bool = False
) -> Callable[[Callable[..., R]], Program[R]]:
    """Makes a `Program` of a function."""
    return lambda function: Program(function, static_argnames, results, quick)


def _plain(leaf: object) -> bool:
    """Whether the leaf is a value on one device, not a tracer."""
    if isinstance(leaf, Tracer):
        return False
    return not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1


def _load_or_trace(name: str, folder: Path, key: str, of_leaves: Callable, specs: Sequence) -> export.Exported:
    """Returns the program as a function of its leaves: from the folder, or else traced and then stored there."""
    identity = f"{name} {key} {jax.default_backend()} {jax.devices()[0].device_kind} {jax.__version__} {source(PACKAGE)}"
    path = folder / f"dropjax-{name}-{hashlib.sha256(identity.encode()).hexdigest()}"
    program = _load(path)
    if program is None:
        program = export.export(jax.jit(of_leaves), disabled_checks=KERNELS)(*specs)
        _save(path, bytes(program.serialize()))
    return program


def _compile(name: str, traced: Callable, specs: Sequence, quick: bool) -> Callable:
    run = lambda *leaves: traced(*leaves)  # noqa: E731
    run.__name__ = name  # for JAX's logs
    lowered = jax.jit(run).lower(*specs)
    if quick and (options := QUICK.get(jax.default_backend())):
        # A later XLA may not know an option.
        with suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(options)
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
    """Stores the program, under its final name only when it is whole; nothing is stored if the folder cannot be written."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(program).digest() + program)
        Path(temporary).replace(path)


@cache
def source(package: Path) -> str:
    """SHA-256 of every Python file below the folder and its name, so that no other version's programs are loaded."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
