"""Leases as objects, so that of several processes that share a store one does the work and the others wait.

A lease is `leases/<key>.<number>`, created with put-if-absent. Its holder changes it now and then; whoever waits and
has seen no change for the lease's time, by its own monotonic clock, creates the next number. So clocks of machines are
never compared, and nothing but put-if-absent, put, get and delete is asked of a backend. Two holders at a time are
possible (one that was only very slow); they waste work, and no more.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from nixery_snap.errors import StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.walking import happens
from nixery_snap.oci import canonical_json
from nixery_snap.ports import Progress

log = structlog.get_logger()

_SIGNS_OF_LIFE: Final = 3  # in the time of a lease
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_PROC: Final = Path("/proc")


class StoredLeases:
    """Implements the port Leases."""

    def __init__(self, store: ObjectStore, lease_seconds: float) -> None:
        self._store = store
        self._lease_seconds = lease_seconds
        self._machine = _machine()

    @asynccontextmanager
    async def held(self, key: str, progress: Progress) -> AsyncIterator[None]:
        number = await self._take(key, progress)
        ended = asyncio.Event()
        renewal = asyncio.create_task(self._renew(keys.lease(key, number), ended))
        try:
            yield
        finally:
            ended.set()  # if it were cancelled, a sign of life on its way would come after the end
            await asyncio.gather(renewal, return_exceptions=True)
            try:
                for given_up in range(number + 1):
                    await self._store.delete(keys.lease(key, given_up))
            except StorageError as error:
                log.warning("lease-left", key=key, reason=str(error))

    async def _take(self, key: str, progress: Progress) -> int:
        number, abandoned = 0, b""
        while True:
            name = keys.lease(key, number)
            if await self._store.put_if_absent(name, self._sign_of_life()):
                if not number or await self._store.get(keys.lease(key, number - 1)) == abandoned:
                    return number
                # Somebody else had taken over, and is done already: there may be a new lease from the beginning.
                await self._store.delete(name)
                number = 0
                continue
            progress("another process is making it")
            if (found := await self._abandoned(name)) is not None:
                log.warning("lease-taken-over", key=key, number=number)
                number, abandoned = number + 1, found
            else:
                number = 0

    async def _abandoned(self, name: str) -> bytes | None:
        """Waits until nobody seems to hold a lease any more, whose content this is then, or it is given up: None."""
        loop = asyncio.get_running_loop()
        pause, last, looked, watched_seconds = _FIRST_PAUSE_SECONDS, b"", loop.time(), 0.0
        while (found := await self._store.get(name)) is not None:
            # Time in which the store, or this process, stood still is no time in which nothing was to be seen.
            since, looked = looked, loop.time()
            watched_seconds = min(looked - since, 2 * pause) + watched_seconds if found == last else 0.0
            last = found
            if watched_seconds >= self._lease_seconds or self._is_of_the_dead(found):
                return found
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS, self._lease_seconds / 4)
        return None

    async def _renew(self, name: str, ended: asyncio.Event) -> None:
        while not await happens(ended, self._lease_seconds / _SIGNS_OF_LIFE):
            try:
                await self._store.put(name, self._sign_of_life())
            except StorageError as error:
                log.warning("lease-not-renewed", lease=name, reason=str(error))

    def _sign_of_life(self) -> bytes:
        """Each differs from the one before."""
        pid = os.getpid()
        life = {"machine": self._machine, "pid": pid, "started": _started(pid), "sign": secrets.token_hex(8)}
        return canonical_json.encode(life)

    def _is_of_the_dead(self, content: bytes) -> bool:
        """Whether the holder was a process of this machine that has ended: then there is nothing to wait for."""
        try:
            life: Any = json.loads(content)
            if not self._machine or life["machine"] != self._machine:
                return False
            return bool(_started(int(life["pid"])) != life["started"])
        except (ValueError, LookupError, TypeError):
            return False


def _machine() -> str:
    """The same for all processes that see each other's ids, and for no others; empty where that cannot be known."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in its machine's units; empty when there is none, or it only waits to be buried."""
    try:
        # The name, in parentheses, can hold anything (proc(5)).
        state, *fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]
