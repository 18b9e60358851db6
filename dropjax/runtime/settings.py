"""The settings of JAX that all computations here need, whatever the program around them or the shell has chosen."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import jax

SETTINGS = {
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "disable_jit": False,
    "default_matmul_precision": None,
    "default_prng_impl": "threefry2x32",
    "threefry_partitionable": True,
    "debug_nans": False,
    "debug_infs": False,
    "debug_key_reuse": False,
    "check_tracer_leaks": False,
    "transfer_guard_host_to_device": "allow",
    "transfer_guard_device_to_device": "allow",
    "transfer_guard_device_to_host": "allow",
}
"""The settings by JAX's names without `jax_`. NaN is allowed because tried orders may overflow; arrays come from the
host."""


def others() -> dict[str, bool | str | None]:
    """The settings of this thread that differ from the needed ones, with the needed values."""
    # Where no guard is set, everything is allowed.
    now = {name: getattr(jax.config, f"jax_{name}") for name in SETTINGS}
    unset = {name for name, value in now.items() if name.startswith("transfer_guard") and value is None}
    return {name: value for name, value in SETTINGS.items() if now[name] != value and name not in unset}


@contextmanager
def own_settings() -> Iterator[None]:
    """A context, also a decorator, in which this thread's settings have the needed values."""
    with ExitStack() as entered:
        for name, value in others().items():
            entered.enter_context(getattr(jax, name)(value))
        yield
