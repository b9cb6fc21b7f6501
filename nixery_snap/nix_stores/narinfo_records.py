"""The narinfos of a substituter that were verified, as records."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from nixery_snap.errors import InvalidFormat, StorageError
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.signing import PublicKey
from nixery_snap.ports import Records

log = structlog.get_logger()

_KIND: Final = "narinfo"
_UNWRITTEN: Final = 4096
_AT_A_TIME: Final = 64
_QUIET_SECONDS: Final = 0.5
_MOST_TIMES: Final = 20


class NarInfoRecords:
    """Reads many at once, and writes in the background: a closure must not wait for thousands of small writes.

    It writes when nothing has been read for a while and `is_busy` says no, or after 10 s.
    """

    def __init__(
        self, records: Records, url: str, public_keys: Iterable[PublicKey], is_busy: Callable[[], bool]
    ) -> None:
        self._records, self._url, self._is_busy = records, url, is_busy
        # Other keys would have taken other path infos.
        self._salt = "\n".join([url, *sorted(map(str, public_keys)), ""])
        self._unwritten: deque[NarInfo] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._reads = self._reads_before = 0
        self._closing = asyncio.Event()

    async def get(self, hash_parts: Sequence[str]) -> Mapping[str, NarInfo]:
        """Those that are there. Raises StorageError."""
        self._reads += 1
        keys = {self._key(hash_part): hash_part for hash_part in hash_parts}
        values = await self._records.get_many(_KIND, keys)
        known = {keys[key]: value for key, value in values.items()}
        return await asyncio.to_thread(self._parsed, known) if known else {}

    def _parsed(self, values: Mapping[str, Any]) -> dict[str, NarInfo]:
        found: dict[str, NarInfo] = {}
        for hash_part, value in values.items():
            try:
                narinfo = NarInfo.parse(value["narinfo"].encode(), self._url)
            except (InvalidFormat, LookupError, TypeError, AttributeError, ValueError):
                continue  # damaged, or written by a version with other rules
            if narinfo.info.path.hash_part == hash_part:
                found[hash_part] = narinfo
        return found

    def put(self, narinfo: NarInfo) -> None:
        """In the background."""
        self._unwritten.append(narinfo)
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write_all())

    async def room(self) -> None:
        """To be awaited before more is to be put."""
        while len(self._unwritten) >= _UNWRITTEN:
            await self._write()

    async def written(self) -> None:
        """Returns when all is; from now on it is written at once."""
        self._closing.set()
        if self._writer is not None:
            await asyncio.wait({self._writer})

    async def _write_all(self) -> None:
        try:
            while self._unwritten:
                await self._turn()
                await self._write()
        finally:
            self._writer = None

    async def _turn(self) -> None:
        """Questions go first; between two levels of a closure there are none for a moment, and it is not over."""
        for _ in range(_MOST_TIMES):
            is_quiet = self._reads == self._reads_before and not self._is_busy()
            self._reads_before = self._reads
            if is_quiet or self._closing.is_set() or len(self._unwritten) >= _UNWRITTEN // 2:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _QUIET_SECONDS)

    async def _write(self) -> None:
        some = [self._unwritten.popleft() for _ in range(min(_AT_A_TIME, len(self._unwritten)))]
        await asyncio.gather(*map(self._write_one, some))

    async def _write_one(self, narinfo: NarInfo) -> None:
        key = self._key(narinfo.info.path.hash_part)
        try:
            await self._records.put(_KIND, key, {"narinfo": bytes(narinfo).decode()})
        except StorageError as error:
            log.warning("record-not-written", kind=_KIND, key=key, reason=str(error))

    def _key(self, hash_part: str) -> str:
        return hashlib.sha256((self._salt + hash_part).encode()).hexdigest()
