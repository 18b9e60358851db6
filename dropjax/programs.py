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
from functools import cache, partial, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from jax import export

P = ParamSpec("P")
R = TypeVar("R")

DIGEST = hashlib.sha256().digest_size


def kept(static_argnames: Sequence[str] = (), results: Sequence[type] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`jax.jit`, and where a persistent compilation cache is set, the traced program is kept in the same folder.

    `results` are the NamedTuples that occur in what the function returns. Inside another traced function, and on arrays that
    are spread over devices, it is `jax.jit` alone.
    """
    for result in results:
        export.register_namedtuple_serialization(result, serialized_name=f"dropjax.{result.__qualname__}")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        jitted = jax.jit(function, static_argnames=tuple(static_argnames))
        signature = inspect.signature(function)
        ready: dict[tuple, Callable] = {}

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            folder = jax.config.jax_compilation_cache_dir
            leaves = jax.tree.leaves((args, kwargs)) if folder else []
            if not folder or not all(map(_plain, leaves)):
                return jitted(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            static = {name: bound.arguments.pop(name) for name in static_argnames}
            flat, tree = jax.tree.flatten(bound.arguments)
            shapes = tuple((np.shape(leaf), str(jax.dtypes.canonicalize_dtype(leaf.dtype))) for leaf in flat)
            key = (folder, tuple(static.items()), tree, shapes)
            if key not in ready:
                specs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
                ready[key] = _load_or_trace(
                    function.__name__, Path(folder), str(key[1:]), partial(_of_leaves, function, static, tree), specs
                )
            return ready[key](*flat)

        return call

    return decorate


def _plain(leaf: object) -> bool:
    """Whether it is a value on one device, and no tracer."""
    if isinstance(leaf, jax.core.Tracer):
        return False
    return not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1


def _of_leaves(function: Callable, static: dict, tree, *leaves):
    return function(**jax.tree.unflatten(tree, leaves), **static)


def _load_or_trace(
    name: str, folder: Path, key: str, of_leaves: Callable, specs: Sequence[jax.ShapeDtypeStruct]
) -> Callable:
    """The program as a compiled function of its leaves: from the folder where it is there, else traced and put there."""
    identity = f"{name} {key} {jax.default_backend()} {jax.__version__} {jax.lib.__version__} {_source()}"
    path = folder / f"dropjax-{name}-{hashlib.sha256(identity.encode()).hexdigest()}"
    program = _load(path)
    if program is None:
        program = export.export(jax.jit(of_leaves))(*specs)
        _save(path, bytes(program.serialize()))
    run = lambda *leaves: program.call(*leaves)  # noqa: E731  # a name of its own for JAX's logs
    run.__name__ = name
    return jax.jit(run)


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(program).digest() + program)
        Path(temporary).replace(path)
    except OSError:
        pass


@cache
def _source() -> str:
    """Hash of this package's source: another version's programs are not these."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
