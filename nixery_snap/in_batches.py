"""Short blocking calls in worker threads, many together: the way there takes longer than most of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")
_WORTH_A_THREAD: Final = 32  # calls
_MOST: Final = 256  # calls in one batch: the first waits for the last

_Batch = list[tuple[Callable[[], Any], asyncio.Future[Any]]]


class InBatches:
    """Runs calls in at most `threads` threads: those made in one turn of the event loop together, and when all
    threads are busy, those made meanwhile.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: _Batch = []
        self._busy = 0

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # what the one before has left, nobody waits for
            self._loop, self._waiting, self._busy = loop, [], 0
        if not self._waiting and self._busy < self._threads:
            loop.call_soon(self._start, loop)
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting.append((call, answer))
        return await answer

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting and self._busy < self._threads:
            share = -(-len(self._waiting) // (self._threads - self._busy))
            size = min(max(share, _WORTH_A_THREAD), _MOST)
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            self._busy += 1
            loop.run_in_executor(None, self._run, loop, batch)

    def _run(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> None:
        results: list[tuple[Any, Exception | None]] = []
        for call, _ in batch:
            try:
                results.append((call(), None))
            except Exception as error:  # whatever it is, it is for whoever made the call
                results.append((None, error))
        loop.call_soon_threadsafe(self._answer, loop, batch, results)

    def _answer(
        self, loop: asyncio.AbstractEventLoop, batch: _Batch, results: list[tuple[Any, Exception | None]]
    ) -> None:
        self._busy -= 1
        self._start(loop)
        for (_, answer), (value, error) in zip(batch, results, strict=True):
            if answer.done():  # nobody waits any more
                continue
            if error is None:
                answer.set_result(value)
            else:
                answer.set_exception(error)
