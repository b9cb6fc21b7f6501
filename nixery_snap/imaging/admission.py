"""Who may begin work, and whose turn it is to build."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final
from weakref import WeakValueDictionary

from nixery_snap import metrics
from nixery_snap.errors import PackageProblem, TooManyRequests
from nixery_snap.imaging.rate_limit import RateLimit
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import Evaluator, Package, PackageSet

CLIENT: Final[ContextVar[str]] = ContextVar("client", default="")
"""For whom this task works, and those that it begins."""
_RETRY_AFTER_SECONDS: Final = 10


class ClientLimit:
    """At most `images` are being made at a time for one client: whoever asked first for an image counts for it.

    The same holds for tags that are looked for in a source. With `per_hour`, no more than that are begun in an hour.
    """

    def __init__(self, images: int, per_hour: int = 0) -> None:
        self._images = images
        reason = f"you have had {per_hour} new images within an hour (setting limits.client_new_images)"
        self._rate = RateLimit(per_hour, 3600, reason)
        self._busy: Counter[str] = Counter()

    def begin(self, client: str) -> None:
        """Counts at once: what is only about to begin counts too. Raises TooManyRequests, and counts nothing then."""
        if self._busy[client] >= self._images:
            raise TooManyRequests(
                f"{self._images} images are being made for you already (setting limits.client_images)",
                _RETRY_AFTER_SECONDS,
            )
        self._rate.check(client)
        self._rate.take(client)
        self._busy[client] += 1

    def end(self, client: str) -> None:
        self._busy[client] -= 1
        if not self._busy[client]:
            del self._busy[client]


class BuildQueue:
    """`builds` go on at a time, at most `length` wait; those that somebody still waits for come first."""

    def __init__(self, builds: int, length: int) -> None:
        self._free = builds
        self._length = length
        self._waiting: list[tuple[asyncio.Future[None], Callable[[], bool]]] = []

    @asynccontextmanager
    async def turn(self, is_wanted: Callable[[], bool]) -> AsyncIterator[None]:
        """Raises TooManyRequests at once when too many wait."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(is_wanted)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, is_wanted: Callable[[], bool]) -> None:
        if len(self._waiting) >= self._length:
            raise TooManyRequests(
                f"{self._length} builds are waiting already (setting limits.build_queue)",
                _RETRY_AFTER_SECONDS,
            )
        entry = (asyncio.get_running_loop().create_future(), is_wanted)
        self._waiting.append(entry)
        try:
            with metrics.BUILDS_WAITING.track_inprogress():
                await entry[0]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:  # it was given the turn meanwhile
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        # Who has given up may not have run since.
        waiting = [entry for entry in self._waiting if not entry[0].done()]
        if not waiting:
            self._free += 1
            return
        entry = next((entry for entry in waiting if entry[1]()), waiting[0])
        self._waiting.remove(entry)
        entry[0].set_result(None)


class FairEvaluator:
    """Implements the port Evaluator around `evaluator`, which is given `at_a_time` evaluations of each client at most.

    The others of a client wait for its own ones, so that who has many in hand holds up nobody else.
    """

    def __init__(self, evaluator: Evaluator, at_a_time: int) -> None:
        self._evaluator = evaluator
        self._at_a_time = at_a_time
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        turn = self._turns.setdefault(CLIENT.get(), asyncio.Semaphore(self._at_a_time))
        async with turn:
            return await self._evaluator.evaluate(package_set, system, names)
