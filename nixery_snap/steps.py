"""The steps of making an image, as metrics and traces see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nixery_snap import metrics, tracing


@contextmanager
def step(name: str, **facts: Any) -> Iterator[tracing.Facts]:
    """Entering gives the facts, to which more may be added before the end."""
    with metrics.timed(name), tracing.span(name, facts):
        yield facts
