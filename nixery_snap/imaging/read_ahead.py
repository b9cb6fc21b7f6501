"""Two halves of one job on two cores: what makes items runs ahead of what uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Final, Generic, TypeVar

T = TypeVar("T")
_DEPTH: Final = 8
_PATIENCE_SECONDS: Final = 0.1


class _End(Generic[T]):
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, made by a thread of their own, at most a few before they are wanted.

    An exception of `items` comes out where it would have; leaving early ends the thread before this returns.
    """
    queue: Queue[T | _End[T]] = Queue(_DEPTH)
    left = Event()

    def put(item: T | _End[T]) -> None:
        while not left.is_set():
            with suppress(Full):
                queue.put(item, timeout=_PATIENCE_SECONDS)
                return

    def produce() -> None:
        try:
            for item in items:
                put(item)
                if left.is_set():
                    return
            put(_End(None))
        except BaseException as error:  # raised again on the other side
            put(_End(error))

    thread = Thread(target=produce, daemon=True)
    thread.start()
    try:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        left.set()
        with suppress(Empty):
            queue.get_nowait()  # whoever waits for room goes on at once
        thread.join()
