"""How long JAX traced, compiled or fetched compiled programs."""

import time

import jax
import jax.monitoring


class CompileClock:
    """The seconds in which JAX traced, compiled or fetched compiled programs."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "CompileClock":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))

    def seconds(self, after: float, before: float) -> float:
        """Of the time between the two; events lie within one another and are counted once."""
        total = 0.0
        for start, end in sorted(self._spans):
            total += max(0.0, min(end, before) - max(start, after))
            after = max(after, end)
        return total
