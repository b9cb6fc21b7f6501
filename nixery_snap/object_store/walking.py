"""Going through the objects of a store, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple, TypeVar

from nixery_snap.object_store.store import ObjectStore

T = TypeVar("T")
_AT_A_TIME: Final = 64


class Stored(NamedTuple):
    """An object in a list; `modified` by the store's own clock, in seconds since the epoch."""

    key: str
    size_bytes: int
    modified: float


class Names:
    """Names of objects, one number of 64 bits each: of two with the same number both count as being there."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def __contains__(self, name: object) -> bool:
        return hash(name) in self._numbers

    def add(self, name: str) -> bool:
        """Whether it is new."""
        before = len(self._numbers)
        self._numbers.add(hash(name))
        return len(self._numbers) > before


async def objects(store: ObjectStore, prefix: str = "") -> AsyncIterator[Stored]:
    async for key, size_bytes, modified in store.list_modified(prefix):
        yield Stored(key, size_bytes, modified)


async def each(items: AsyncIterator[T], work: Callable[[T], Awaitable[object]]) -> None:
    """Several at a time."""
    turn = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with turn:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            await work(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(_AT_A_TIME)]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def listed(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Waits for it, so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
