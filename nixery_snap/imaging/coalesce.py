"""Equal work is done once: whoever asks meanwhile waits for the same task."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

from nixery_snap.errors import (
    NixerySnapError,
    ShuttingDown,
    StillWorking,
    StorageFull,
    StorageUnavailable,
    TooManyRequests,
)

T = TypeVar("T")
_RETRY_AFTER_SECONDS = 10


class Coalescer(Generic[T]):
    """Runs one task per key at a time; a task outlives those who wait for it.

    An error of this program's own tree is remembered for `failure_ttl_seconds`, so that the GET that follows
    a failed HEAD gets its message without a second attempt.
    """

    def __init__(self, failure_ttl_seconds: float = 0) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}
        self._failures: TTLCache[str, NixerySnapError] = TTLCache(1024, failure_ttl_seconds)
        self._waiters: Counter[str] = Counter()

    def runs(self, key: str) -> bool:
        """Whether `run` would begin no new work."""
        return key in self._tasks or key in self._failures

    def is_awaited(self, key: str) -> bool:
        """Whether anybody waits for `key` at this moment."""
        return key in self._waiters

    async def run(self, key: str, work: Callable[[], Awaitable[T]], wait_seconds: float | None = None) -> T:
        """The result of `work` for `key`, begun now or already under way.

        Raises StillWorking after `wait_seconds`; the work goes on. Raises ShuttingDown when it has been given up.
        """
        if failure := self._failures.get(key):
            raise failure.with_traceback(None)
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(self._watch(key, work))
            task.add_done_callback(_retrieve)
        # asyncio.wait leaves the task alone when the waiter is cancelled or gives up.
        self._waiters[key] += 1
        try:
            done, _ = await asyncio.wait({task}, timeout=wait_seconds)
        finally:
            self._waiters[key] -= 1
            if not self._waiters[key]:
                del self._waiters[key]
        if not done:
            raise StillWorking(wait_seconds or 0, _RETRY_AFTER_SECONDS)
        if task.cancelled():
            raise ShuttingDown(_RETRY_AFTER_SECONDS)
        return task.result()

    async def drain(self, timeout_seconds: float) -> int:
        """Let running tasks finish; those that do not in time are cancelled. Returns how many were."""
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(self._tasks.values(), timeout=timeout_seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return len(late)

    async def _watch(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except (TooManyRequests, StorageUnavailable, StorageFull):  # they pass
            raise
        except NixerySnapError as error:
            self._failures[key] = error
            raise
        finally:
            del self._tasks[key]


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Mark the exception as seen: when every waiter has left, nobody else would."""
    if not task.cancelled():
        task.exception()
