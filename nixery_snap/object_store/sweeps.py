"""What a sweep and the servers beside it tell each other: by one object, and without a common clock.

    announced   servers no longer trust what they remember, and write down uses before they answer
    sweeping    what is used is looked up for the last time, and the rest removed
    done        until the next one

A server that could not read the object for `pace_seconds` trusts nothing either, and a sweep waits longer than that
between announcing and sweeping. So whatever is asked for is either seen by the sweep or looked for after it.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog

from nixery_snap.errors import StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.walking import happens
from nixery_snap.oci import canonical_json

log = structlog.get_logger()

_POLLS: Final = 3  # in `pace_seconds`
_LEAD: Final = 1.2  # of `pace_seconds`, for clocks that do not run alike …
_LEAD_SECONDS: Final = 1.5  # … and because trust is looked at once a second
_ABANDONED: Final = 3  # times `pace_seconds` without a sign of life


class State(StrEnum):
    ANNOUNCED = "announced"
    SWEEPING = "sweeping"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Marker:
    """`beat` changes while somebody is at it."""

    sweep: str
    state: State
    beat: int = 0

    @classmethod
    def parse(cls, content: bytes) -> Marker:
        """What cannot be read was written by nobody that we know: it counts as done."""
        try:
            value = json.loads(content)
            return cls(str(value["sweep"]), State(value["state"]), int(value["beat"]))
        except (ValueError, LookupError, TypeError):
            return cls("", State.DONE)

    def __bytes__(self) -> bytes:
        return canonical_json.encode({"sweep": self.sweep, "state": self.state, "beat": self.beat})


NEVER: Final = Marker("", State.DONE)


class Sweeps:
    """What this process knows of sweeps; `forget` are called when what is remembered of the store may be wrong."""

    def __init__(
        self, store: ObjectStore, pace_seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self.pace_seconds = pace_seconds
        self._now = now
        self._marker: Marker | None = None
        self._since = 0.0  # when `_marker` was first seen
        self._read = float("-inf")
        self._trusted = False
        self.forget: list[Callable[[], None]] = []

    def trusted(self) -> bool:
        """Whether what was seen in the store before may be taken for granted; takes no time."""
        if self._trusted and self._now() - self._read >= self.pace_seconds:
            self._set_trusted(False)
        return self._trusted

    async def read(self) -> Marker:
        """Of a sweep that was given up, as if it were done. Raises StorageError."""
        begun = self._now()
        content = await self._store.get(keys.SWEEP)
        marker = NEVER if content is None else Marker.parse(content)
        before = self._marker
        if marker != before:
            self._marker, self._since = marker, begun
        elif begun - self._since > _ABANDONED * self.pace_seconds:
            marker = Marker(marker.sweep, State.DONE)
        self._read = begun
        if before is not None and before.sweep != marker.sweep:
            self._set_trusted(False)  # a whole sweep may have gone by
        self._set_trusted(marker.state is State.DONE)
        return marker

    async def settled(self) -> str:
        """Changes with each sweep and its state; waits for the end of one that is removing. Raises StorageError."""
        while (marker := await self.read()).state is State.SWEEPING:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(self.pace_seconds / _POLLS)
        return f"{marker.sweep} {marker.state}"

    async def watch(self, seen: Callable[[], object]) -> None:
        """Look for sweeps until cancelled; `seen` is called each time."""
        while True:
            try:
                async with asyncio.timeout(self.pace_seconds):
                    await self.read()
            except (StorageError, TimeoutError) as error:
                log.warning("sweeps-not-read", reason=str(error) or "the store does not answer")
            seen()
            await asyncio.sleep(self.pace_seconds / _POLLS)

    def _set_trusted(self, trusted: bool) -> None:
        if trusted != self._trusted:
            self._trusted = trusted
            for forget in self.forget:
                forget()


class Hold:
    """The right to sweep, while nobody else takes it."""

    def __init__(self, store: ObjectStore, pace_seconds: float) -> None:
        self._store = store
        self._pace_seconds = pace_seconds
        self._marker = Marker(uuid.uuid4().hex, State.ANNOUNCED)
        self._beaten = float("-inf")
        self._beating = asyncio.Lock()

    def check(self) -> None:
        """To be called before anything is removed. Raises StorageError when others may think that we are gone."""
        if time.monotonic() - self._beaten > self._pace_seconds:
            raise StorageError("the store was too slow for a sweep to go on safely; it can be begun again")

    async def enter(self, state: State) -> None:
        self._marker = Marker(self._marker.sweep, state, self._marker.beat)
        await self._beat(first=state is State.ANNOUNCED)

    async def wait_for_servers(self) -> None:
        """Until none trusts what it knew before the announcement."""
        await asyncio.sleep(self._pace_seconds * _LEAD + _LEAD_SECONDS)

    async def keep(self, ended: asyncio.Event) -> None:
        """Give signs of life until then. Not to be cancelled: a sign on its way would come after the end."""
        while not await happens(ended, self._pace_seconds / _POLLS):
            await self._beat()

    async def _beat(self, *, first: bool = False) -> None:
        async with self._beating:  # an old state must not come after a new one
            await self._write(first=first)

    async def _write(self, *, first: bool) -> None:
        begun = time.monotonic()
        found = await self._store.get(keys.SWEEP)
        if not first and (found is None or Marker.parse(found).sweep != self._marker.sweep):
            self._beaten = float("-inf")
            raise StorageError("another sweep of this store has begun")
        self._marker = Marker(self._marker.sweep, self._marker.state, self._marker.beat + 1)
        await self._store.put(keys.SWEEP, bytes(self._marker))
        self._beaten = begun


@asynccontextmanager
async def announced(store: ObjectStore, pace_seconds: float) -> AsyncIterator[Hold]:
    """A sweep of which servers know; they are told of its end in any case. Raises StorageError."""
    other = Sweeps(store, pace_seconds)
    if (await other.read()).state is not State.DONE:
        # It may have been given up: that takes a while to see.
        await asyncio.sleep(_ABANDONED * pace_seconds + 1)
        if (await other.read()).state is not State.DONE:
            raise StorageError("another sweep of this store is under way")
    hold = Hold(store, pace_seconds)
    await hold.enter(State.ANNOUNCED)
    ended = asyncio.Event()
    keeping = asyncio.ensure_future(hold.keep(ended))
    try:
        yield hold
    finally:
        ended.set()
        await asyncio.gather(keeping, return_exceptions=True)
        await hold.enter(State.DONE)
