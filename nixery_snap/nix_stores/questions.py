"""Asks one server: a bounded number of questions at a time, some of them again, and none while it keeps failing."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import structlog

from nixery_snap import metrics
from nixery_snap.errors import InvalidFormat, SubstituterUnreachable
from nixery_snap.nix_stores.cache_transport import CacheTransport, Fetched, TransportFailed
from nixery_snap.nix_stores.circuit_breaker import OPEN_SECONDS, CircuitBreaker, CircuitOpen

log = structlog.get_logger()
T = TypeVar("T")

Heard = Callable[[str, Fetched | SubstituterUnreachable], object]
"""Is told a name and what was fetched."""

_TRIES: Final = 3
_BACK_OFF_SECONDS: Final = 0.1
_MAX_WAIT_SECONDS: Final = 5.0  # a Retry-After beyond it is taken for a no


class Questions:
    """Those to the substituter `url`; counts "requests" and "failures"."""

    def __init__(self, url: str, counts: Counter[str], concurrency: int) -> None:
        self._url, self._counts = url, counts
        self._turns = asyncio.Semaphore(concurrency)
        self._waiting = 0  # for a turn
        self._breaker = CircuitBreaker(self._opened)
        self._seconds = metrics.SUBSTITUTER_SECONDS.labels(url)
        self._failures = metrics.SUBSTITUTER_FAILURES.labels(url)
        self._up = metrics.SUBSTITUTER_UP.labels(url)
        self._up.set(1)

    @property
    def are_answered(self) -> bool:
        """As far as is known without asking."""
        return self._breaker.is_sound

    async def ask(self, work: Callable[[], Awaitable[T]], failed: TransportFailed | None = None) -> T:
        """What `work` returns, with as many tries as it takes; with `failed`, that was the first.

        Raises SubstituterUnreachable.
        """
        try:
            is_trial = self._breaker.begin()
            try:
                # Waiting for the next try keeps the turn: a cache that fails gets no more questions than it has.
                async with self._turn():
                    for tried in range(1, _TRIES + 1):
                        if not is_trial:
                            self._breaker.check()
                        try:
                            if tried == 1 and failed is not None:
                                raise failed
                            return await self._counted(work)
                        except TransportFailed as error:
                            wait_seconds = _wait_seconds(tried, error)
                            if wait_seconds is None:
                                self._breaker.failed(error.reason)
                                raise SubstituterUnreachable(self._url, error.reason) from error
                        await asyncio.sleep(wait_seconds)
            finally:
                if is_trial:
                    self._breaker.end_trial()
        except CircuitOpen as error:
            raise SubstituterUnreachable(self._url, f"{error.reason}; it is left alone for a while") from None
        raise AssertionError("the last try waits for nothing")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    async def ask_many(
        self, transport: CacheTransport, names: Sequence[str], max_bytes: int, told: Heard
    ) -> None:
        """Fetch those files that can be had without ado, until one fails or somebody waits for a turn.

        What `told` hears has failed may be asked for again.
        """
        turns = under_way = 0
        is_over = fails = False

        def give_back() -> None:
            """Who waits for its last answers needs no more turns than these."""
            nonlocal turns
            while is_over and turns > under_way:
                turns -= 1
                self._turns.release()

        def wanted() -> Iterator[str]:
            nonlocal under_way, is_over
            for name in names:
                if fails or self._waiting or not self._breaker.is_sound:
                    break
                under_way += 1
                yield name
            is_over = True

        def heard(name: str, content: Fetched, seconds: float) -> None:
            nonlocal under_way, fails
            under_way -= 1
            fails = fails or isinstance(content, TransportFailed)
            give_back()
            told(name, self._judged(content, seconds))

        try:
            while turns < len(names) and self._breaker.is_sound and not self._turns.locked():
                await self._turns.acquire()
                turns += 1
            if turns:
                await transport.get_many(wanted(), max_bytes, turns, heard)
        finally:
            is_over, under_way = True, 0
            give_back()

    def _judged(self, content: Fetched, seconds: float) -> Fetched | SubstituterUnreachable:
        self._counts["requests"] += 1
        if not isinstance(content, TransportFailed):
            self._answered(seconds)
            return content
        self._count_failure()
        if _wait_seconds(1, content) is not None:
            return content
        self._breaker.failed(content.reason)
        return SubstituterUnreachable(self._url, content.reason)

    def failed(self, reason: str) -> None:
        """What was answered broke off afterwards."""
        self._count_failure()
        self._breaker.failed(reason)

    async def _counted(self, work: Callable[[], Awaitable[T]]) -> T:
        self._counts["requests"] += 1
        begun = time.perf_counter()
        try:
            answer = await work()
        except TransportFailed:
            self._count_failure()
            raise
        except InvalidFormat:
            self._answered(time.perf_counter() - begun)  # if nonsense
            raise
        self._answered(time.perf_counter() - begun)
        return answer

    def _count_failure(self) -> None:
        self._counts["failures"] += 1
        self._failures.inc()

    def _answered(self, seconds: float) -> None:
        self._seconds.observe(seconds)
        if not self._breaker.is_sound:
            self._up.set(1)
        self._breaker.succeeded()

    def _opened(self, reason: str) -> None:
        self._up.set(0)
        log.warning("substituter-unreachable", url=self._url, reason=reason, seconds=OPEN_SECONDS)


def _wait_seconds(tried: int, error: TransportFailed) -> float | None:
    """How long to wait before the next try; None: there is none."""
    wanted = error.retry_after_seconds
    if not error.retry or tried == _TRIES or (wanted or 0) > _MAX_WAIT_SECONDS:
        return None
    back_off: float = _BACK_OFF_SECONDS * (1 << (tried - 1)) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
    return max(back_off, wanted or 0)
