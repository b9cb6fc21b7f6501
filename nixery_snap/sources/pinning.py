"""Remembers what moving tags mean, so that a source is asked once in a while and not for every request.

A pin younger than `ttl_seconds` is the answer. An older one still is for another `stale_seconds`, while the source
is asked in the background. After that the request waits for the source; and only if the source cannot be read, the
last known pin is served with a warning, however old. A tag that the source says is gone is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, TypeVar

import structlog
from cachetools import LRUCache, TTLCache

from nixery_snap.errors import SourceError, StorageError, TagNotFound
from nixery_snap.ports import PackageSet, PackageSource, Pin, PinStore

log = structlog.get_logger()
T = TypeVar("T")
_REMEMBERED_TAGS: Final = 4096
_RETRY_SECONDS: Final = 30.0
_MISSING_SECONDS: Final = 10.0


@dataclass(slots=True)
class _Known:
    """A pin, when it was made, and until when the source is left alone after it could not be read."""

    pin: Pin
    made: float
    rests_until: float = 0


class Pinned:
    """Implements the port PackageSource around another one, whose own `current` is for ever."""

    def __init__(
        self,
        source: PackageSource,
        pins: PinStore,
        ttl_seconds: float = 300,
        stale_seconds: float = 86400,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = source.name
        self._source = source
        self._pins = pins
        self._ttl = ttl_seconds
        self._stale = stale_seconds
        self._now = now
        self._known: LRUCache[str, _Known] = LRUCache(_REMEMBERED_TAGS)
        # Strangers may ask for what is not there as often as they like.
        self._missing: TTLCache[str, TagNotFound] = TTLCache(
            _REMEMBERED_TAGS, min(ttl_seconds, _MISSING_SECONDS)
        )
        self._tags: tuple[Sequence[str], float] | None = None
        self._tasks: dict[str | None, asyncio.Task[Any]] = {}

    def current(self, tag: str) -> Pin | None:
        if pin := self._source.current(tag):
            return pin
        known = self._known.get(tag)
        if known is None:
            return None
        age = self._age(known.made)
        if age < self._ttl:
            return known.pin
        rests = 0 < known.rests_until - self._now() <= _RETRY_SECONDS
        if age < self._ttl + self._stale or rests:
            if not rests:
                self._once(tag, lambda: self._renew(tag))
            return known.pin
        return None

    async def pin(self, tag: str) -> Pin:
        if pin := self.current(tag):
            return pin
        if missing := self._missing.get(tag):
            raise missing.with_traceback(None)
        if tag not in self._known and await self._recall(tag) and (pin := self.current(tag)):
            return pin
        return await _result(self._once(tag, lambda: self._renew(tag)))

    async def checkout(self, pin: Pin) -> PackageSet:
        return await self._source.checkout(pin)

    async def tags(self) -> Sequence[str]:
        """The same rules hold as for pins, but no other process is told."""
        if self._tags is not None:
            tags, made = self._tags
            age = self._age(made)
            if age < self._ttl + self._stale:
                if age >= self._ttl:
                    self._once(None, self._renew_tags)
                return tags
        return await _result(self._once(None, self._renew_tags))

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._source.close()

    def _age(self, made: float) -> float:
        """In seconds. What was made in the future, as it seems when a clock is set back, is as old as can be."""
        age = self._now() - made
        return age if age >= 0 else inf

    def _once(self, key: str | None, work: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """The task of that key, which whoever asks meanwhile shares and which outlives them."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(_awaited(work))
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
            task.add_done_callback(_retrieve)
        return task

    async def _recall(self, tag: str) -> bool:
        """Whether another process, or one before us, knew the tag more recently than we do."""
        try:
            stored = await self._pins.get(self.name, tag)
        except StorageError as error:
            log.warning("pin-not-recalled", source=self.name, tag=tag, reason=str(error))
            return False
        if stored is None:
            return False
        pin, made = stored
        known = self._known.get(tag)
        # A clock that is ahead must not keep a pin young.
        if known is not None and min(made, self._now()) <= known.made:
            return False
        self._known[tag] = _Known(pin, min(made, self._now()))
        return True

    async def _renew(self, tag: str) -> Pin:
        await self._recall(tag)
        known = self._known.get(tag)
        if known is not None and self._age(known.made) < self._ttl:
            return known.pin
        asked = self._now()
        try:
            pin = await self._source.pin(tag)
        except TagNotFound as error:
            self._missing[tag] = error
            if self._known.pop(tag, None) is not None:
                log.info("tag-gone", source=self.name, tag=tag)
                await self._stored(self._pins.delete(self.name, tag), tag)
            raise
        except (SourceError, StorageError) as error:
            if known is None:
                raise
            log.warning(
                "old-pin-served",
                source=self.name,
                tag=tag,
                revision=known.pin.revision,
                seconds=round(self._now() - known.made),
                reason=str(error),
            )
            self._known[tag] = _Known(known.pin, known.made, self._now() + min(self._ttl, _RETRY_SECONDS))
            return known.pin
        if known is not None and known.pin != pin:
            log.info("tag-moved", source=self.name, tag=tag, before=known.pin.revision, revision=pin.revision)
        self._known[tag] = _Known(pin, asked)
        self._missing.pop(tag, None)
        await self._stored(self._pins.put(self.name, tag, pin, asked), tag)
        return pin

    async def _stored(self, writing: Awaitable[None], tag: str) -> None:
        """The store only spares others the question: what it cannot do fails no request."""
        try:
            await writing
        except StorageError as error:
            log.warning("pin-not-stored", source=self.name, tag=tag, reason=str(error))

    async def _renew_tags(self) -> Sequence[str]:
        asked = self._now()
        try:
            self._tags = await self._source.tags(), asked
        except (SourceError, StorageError) as error:
            if self._tags is None:
                raise
            log.warning("old-tags-served", source=self.name, reason=str(error))
            rest = min(self._ttl, _RETRY_SECONDS)
            self._tags = self._tags[0], self._now() - self._ttl + rest
        return self._tags[0]


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


async def _result(task: asyncio.Task[T]) -> T:
    """asyncio.wait leaves the task alone when the waiter is cancelled."""
    await asyncio.wait({task})
    return task.result()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Mark the exception as seen: when every waiter has left, nobody else would."""
    if not task.cancelled():
        task.exception()
