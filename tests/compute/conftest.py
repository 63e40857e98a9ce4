"""Fixtures of the compute tests."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def compile_events() -> Iterator[list[str]]:
    """Every compilation that jax does while the test runs, also those that no counter of ours knows of."""
    events: list[str] = []

    def listen(name: str, duration: float, **_: object) -> None:
        del duration
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)
