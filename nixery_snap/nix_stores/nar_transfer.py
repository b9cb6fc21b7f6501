"""From the event loop, where a NAR comes in, to the worker thread that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Final, TypeVar

from nixery_snap import metrics
from nixery_snap.errors import SubstituterUnreachable
from nixery_snap.nix_stores.cache_transport import CacheTransport, TransportFailed
from nixery_snap.nix_stores.pipe import Pipe
from nixery_snap.nix_stores.questions import Questions

T = TypeVar("T")

_READ_AT_A_TIME: Final = 8


class NarTransfers:
    """Those from one substituter, whose `questions` are told of what breaks off. Who reads takes one of `turns`."""

    def __init__(self, url: str, transport: CacheTransport, questions: Questions) -> None:
        self._url, self._transport, self._questions = url, transport, questions
        self._received = metrics.SUBSTITUTER_BYTES.labels(url)
        self.turns = asyncio.Semaphore(_READ_AT_A_TIME)
        # Not the event loop's own threads: these wait for a server, and all else must not wait for them.
        self._threads = ThreadPoolExecutor(_READ_AT_A_TIME, "nar")

    async def open(self, name: str, first_bytes: int | None) -> tuple[Pipe, asyncio.Task[None]] | None:
        """None for a file that is not there. Cancelling the task ends the transfer. Raises SubstituterUnreachable."""
        return await self._questions.ask(lambda: self._open(name, first_bytes))

    async def read(self, read: Callable[[Iterator[bytes]], T], chunks: Iterator[bytes]) -> T:
        """What `read` makes of `chunks`, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, copy_context().run, read, chunks)

    async def _open(self, name: str, first_bytes: int | None) -> tuple[Pipe, asyncio.Task[None]] | None:
        """Raises TransportFailed."""
        pipe, opened = Pipe(), asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._pump(name, first_bytes, pipe, opened))
        try:
            return (pipe, task) if await opened else None
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _pump(
        self, name: str, first_bytes: int | None, pipe: Pipe, opened: asyncio.Future[bool]
    ) -> None:
        try:
            async with self._transport.stream(name, first_bytes) as chunks:
                opened.set_result(True)
                async for chunk in chunks:
                    self._received.inc(len(chunk))
                    await pipe.put(chunk)
            pipe.end()
        except FileNotFoundError:
            pass  # seen by `opened`, below
        except TransportFailed as error:
            if opened.done():
                self._questions.failed(error.reason)
                pipe.end(SubstituterUnreachable(self._url, error.reason))
            else:
                opened.set_exception(error)
        except Exception as error:  # whatever it is, somebody waits for it
            if opened.done():
                pipe.end(error)
            else:
                opened.set_exception(error)
        finally:
            pipe.end(SubstituterUnreachable(self._url, "the transfer was given up"))
            if not opened.done():
                opened.set_result(False)
