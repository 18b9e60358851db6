"""Compiled programs that later processes load instead of tracing and compiling them again.

JAX's persistent cache finds a compiled program only by its StableHLO: tracing and lowering come first, and for this
package's kernels take several times what fetching does. So the compiled programs are kept beside that cache's own, under the
names, shapes, source and machine that they were compiled for.
"""

import hashlib
import inspect
import io
import os
import pickle
import platform
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, update_wrapper
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.monitoring
import numpy as np
from jax.core import Tracer

from dropjax.runtime import mesh, together
from dropjax.runtime.compile_clock import counted
from dropjax.runtime.settings import own_settings

R = TypeVar("R")

PACKAGE = Path(__file__).parents[1]
"""The folder of all this package's source."""

DIGEST = hashlib.sha256().digest_size


Options = Mapping[str, Mapping[str, Any]]
"""Compiler options, by JAX's name of the backend."""

QUICK: Options = {
    "cpu": {
        "xla_cpu_use_fusion_emitters": False,
        "xla_backend_optimization_level": 1,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_parallel_codegen_split_count": 1,
    },
    "gpu": {"xla_gpu_autotune_level": 0},
}
"""Options for less than half the compile time on a CPU. Programs of few rows then run up to a tenth longer, those of many
rows half as long again, because their activations are not spread over the cores; and each is compiled by one thread, for
programs are compiled side by side. On a GPU compiling takes a quarter of the time, because no ways to multiply matrices are
tried out."""

OF_FEW_ROWS: Options = {**QUICK, "cpu": {**QUICK["cpu"], "xla_disable_hlo_passes": "tree_reduction_rewriter"}}
"""Options for a fifth less again, for programs that never see more than some hundred rows: their sums are not split up."""


class Program(Generic[R]):
    """`jax.jit` of a function, for kernels that a whole command line waits for.

    Where a persistent compilation cache is set, the compiled program is kept in the same folder. `prepare` compiles without
    running, and a call meanwhile, from another thread, waits for it. Inside another traced function, and on arrays that are
    spread over devices, it is `jax.jit` alone. Where solves go side by side (`runtime/together.py`), a program that is
    `shared` runs their calls together.
    """

    def __init__(
        self,
        function: Callable[..., R],
        static_argnames: Sequence[str] = (),
        options: Options | None = None,
        shared: bool = False,
    ) -> None:
        """`options` are the compiler's; without them, its own."""
        self._function = function
        self._jitted = jax.jit(function, static_argnames=tuple(static_argnames))
        self._static = tuple(static_argnames)
        self._options, self._shared = options or {}, shared
        self._signature = inspect.signature(function)
        self._compiled: dict[tuple, Future[Callable[..., R]]] = {}
        self._lock = threading.Lock()
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Runs the function."""
        if not all(map(_plain, jax.tree.leaves((args, kwargs)))):
            return self._jitted(*args, **kwargs)
        compiled, leaves = self._for(args, kwargs)
        group = self._group()
        return compiled(*leaves) if group is None else group.call(compiled, leaves)

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
        size = 1 if (group := self._group()) is None else group.size
        key = (folder, size, *static.values(), tree, shapes)
        with self._lock:
            ours = key not in self._compiled
            compiled = self._compiled.setdefault(key, Future())
        if ours:
            of_leaves = lambda *leaves: self._function(**jax.tree.unflatten(tree, leaves), **static)  # noqa: E731
            of_leaves = of_leaves if size == 1 else together.batched(of_leaves, size)
            name = self._function.__name__
            specs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes] * size
            try:
                # A program that is spread over devices is not one device's to keep.
                path = _path(Path(folder), name, str(key[1:])) if folder and not mesh.is_set() else None
                # JAX's own cache finds a program under its name as well: so what an older source left is not taken for it.
                of_leaves.__name__ = name if path is None else path.name.removeprefix("dropjax-").replace("-", "_")
                compiled.set_result(_load_or_compile(path, of_leaves, specs, self._options))
            except BaseException as error:
                compiled.set_exception(error)
                del self._compiled[key]
                raise
        return compiled.result(), leaves

    def _group(self) -> together.Together | None:
        """The solves whose calls this thread's are run with."""
        return together.current() if self._shared else None


def program(
    static_argnames: Sequence[str] = (), options: Options | None = None, shared: bool = False
) -> Callable[[Callable[..., R]], Program[R]]:
    """Makes a `Program` of a function."""
    return lambda function: Program(function, static_argnames, options, shared)


def _plain(leaf: object) -> bool:
    """Whether the leaf is a value on one device, not a tracer."""
    if isinstance(leaf, Tracer):
        return False
    return not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1


def _path(folder: Path, name: str, key: str) -> Path:
    """Where a program is kept: the file's name stands for all that it depends on."""
    identity = f"{name} {key} {source(PACKAGE)} {_machine(_device())}"
    return folder / f"dropjax-{name}-{hashlib.sha256(identity.encode()).hexdigest()}"


def _device() -> Any:
    """The device that programs are compiled for."""
    chosen = jax.config.values["jax_default_device"]
    return chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]


@cache
def _machine(device: Any) -> str:
    """What machine code depends on beside its source: the compiler, its flags, the device, and a CPU's instructions."""
    versions = version("jax"), version("jaxlib"), device.client.platform_version, os.environ.get("XLA_FLAGS")
    return " ".join(map(str, (*versions, device.platform, device.device_kind, *_processor())))


def _processor() -> tuple:
    """The processor's instructions, and how many cores a program may be divided between."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = None
    with suppress(OSError), Path("/proc/cpuinfo").open() as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                told = line
                break
    return platform.machine(), cores, told or platform.processor()


def _load_or_compile(path: Path | None, of_leaves: Callable, specs: Sequence, options: Options) -> Callable:
    """Returns the compiled program as a function of its leaves: from the file, or else compiled and then stored there."""
    if path is not None and (kept := _load(path, len(specs))) is not None:
        return kept
    lowered = jax.jit(of_leaves).lower(*specs)
    _listen()
    _FETCHED.now = False
    compiled = _compile(lowered, options)
    # XLA cannot serialise again what it has itself read: a part of its functions would be missing.
    if path is not None and not _FETCHED.now and not _calls_libraries(lowered):
        _save(path, compiled)
    return compiled


_FETCHED = threading.local()
"""`now`: whether what this thread compiled last came from JAX's own cache."""


@cache
def _listen() -> None:
    """Registers the one listener that notes it."""

    def note(event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _FETCHED.now = True

    jax.monitoring.register_event_listener(note)


def _calls_libraries(lowered: jax.stages.Lowered) -> bool:
    """Whether the program calls functions, such as LAPACK's, that JAX makes known to the device when it lowers a program."""
    code, module = io.BytesIO(), lowered.compiler_ir()
    if module is None:
        return True
    module.operation.write_bytecode(code)
    return b"custom_call" in code.getvalue()


def _compile(lowered: jax.stages.Lowered, options: Options) -> jax.stages.Compiled:
    if ours := options.get(jax.default_backend()):
        # A later XLA may not know an option.
        with suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(dict(ours))
    return lowered.compile()


def _load(path: Path, leaves: int) -> Callable | None:
    """The kept program of so many leaves; None where there is none, one that was damaged, or one that another user wrote."""
    try:
        with path.open("rb") as file:
            if not _ours(file.fileno()):
                return None
            content = file.read()
    except OSError:
        return None
    digest, kept = content[:DIGEST], content[DIGEST:]
    if hashlib.sha256(kept).digest() != digest:
        return None
    from jax.experimental.serialize_executable import deserialize_and_load

    with counted(), suppress(jax.errors.JaxRuntimeError):
        # Machine code is run as it is read, so that what else the file holds need be trusted no more than that.
        executable, results = pickle.loads(kept)
        trees = jax.tree.structure(((0,) * leaves, {})), jax.tree.structure(results)
        return deserialize_and_load(executable, *trees, execution_devices=[_device()])
    return None


def _ours(file: int) -> bool:
    """Whether this user or the administrator owns an open file: what anyone else left in a shared folder is not run."""
    return not hasattr(os, "getuid") or os.fstat(file).st_uid in (os.getuid(), 0)


def _save(path: Path, compiled: jax.stages.Compiled) -> None:
    """Stores the program, under its final name only when it is whole; nothing is stored if the folder cannot be written, or
    if the device's programs cannot be."""
    from jax.experimental.serialize_executable import serialize

    with suppress(OSError, ValueError, jax.errors.JaxRuntimeError):
        executable, _, tree = serialize(compiled)
        kept = pickle.dumps((executable, jax.tree.unflatten(tree, range(tree.num_leaves))))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(kept).digest() + kept)
        Path(temporary).replace(path)


@cache
def source(package: Path) -> str:
    """SHA-256 of every Python file below the folder and its name, so that no other version's programs are loaded."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
