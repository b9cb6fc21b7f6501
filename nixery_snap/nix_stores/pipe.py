"""Bytes from the event loop to a worker thread, never more of them than a little ahead."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_AHEAD_BYTES: Final = 1024 * 1024


class Pipe:
    """Written on the event loop that makes it, read by iterating in one worker thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._changed = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._size_bytes = 0
        self._ended = False
        self._error: BaseException | None = None

    async def put(self, chunk: bytes) -> None:
        """Waits while the reader is far behind."""
        while True:
            with self._changed:
                if self._size_bytes < _AHEAD_BYTES:
                    self._chunks.append(chunk)
                    self._size_bytes += len(chunk)
                    self._changed.notify()
                    return
                self._room.clear()
            await self._room.wait()

    def end(self, error: BaseException | None = None) -> None:
        """After what has been put comes the end, or `error`; only the first end counts."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._changed.notify()

    def __iter__(self) -> Iterator[bytes]:
        """Blocking."""
        while True:
            with self._changed:
                while not self._chunks and not self._ended:
                    self._changed.wait()
                if not self._chunks:
                    if self._error is not None:
                        raise self._error
                    return
                was_full = self._size_bytes >= _AHEAD_BYTES
                chunk = self._chunks.popleft()
                self._size_bytes -= len(chunk)
            if was_full:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._room.set)
            yield chunk
