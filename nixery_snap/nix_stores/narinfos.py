"""What one substituter says of paths: asked for once, checked before anybody hears of it, and remembered."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import Final

import structlog
from cachetools import LRUCache, TTLCache

from nixery_snap.errors import BadSignature, CorruptPath, InvalidFormat, SubstituterError
from nixery_snap.nix.base32 import ALPHABET
from nixery_snap.nix.content_address import recomputes
from nixery_snap.nix.narinfo import MAX_SIZE, NarInfo
from nixery_snap.nix.signing import PublicKey, signers, verified_by
from nixery_snap.nix.store_path import STORE_DIR
from nixery_snap.nix_stores.narinfo_records import NarInfoRecords
from nixery_snap.ports import Records

log = structlog.get_logger()

LARGE_BYTES: Final = 64 * 1024  # parsing more takes a thread, as it would hold up the event loop
_HASH_PART: Final = re.compile(f"[{ALPHABET}]{{32}}")
_REMEMBERED: Final = 65_536
_IN_MEMORY: Final = 8192
_WORTH_CHECKING: Final = 128
_CHECKING_THREADS: Final = 2

Said = NarInfo | SubstituterError | None
"""Of a path: verified, or what is wrong with it, or that it is not there."""


class NarInfos:
    """Those of the substituter `url`, by hash part; `get` fetches one. What is wrong or not there is remembered for
    a time, in seconds, and what is right for ever. Counts "found", "absent" and "refused".
    """

    def __init__(
        self,
        url: str,
        get: Callable[[str, int], Awaitable[bytes | None]],
        public_keys: Sequence[PublicKey],
        records: Records,
        counts: Counter[str],
        *,
        absent_seconds: float,
        refused_seconds: float,
        concurrency: int,
    ) -> None:
        self._url, self._get, self._public_keys, self._counts = url, get, tuple(public_keys), counts
        self._concurrency = concurrency
        self._recorded = NarInfoRecords(records, url, public_keys, lambda: bool(self._asking))
        self._found: LRUCache[str, NarInfo] = LRUCache(_IN_MEMORY)
        self._absent: TTLCache[str, bool] = TTLCache(_REMEMBERED, absent_seconds)
        self._refused: TTLCache[str, SubstituterError] = TTLCache(_REMEMBERED, refused_seconds)
        self._lock = threading.Lock()  # readers of NARs refuse from their own threads
        self._asking: dict[str, asyncio.Future[Said]] = {}
        self._unchecked: list[tuple[str, NarInfo]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Finish writing records."""
        await self._recorded.written()

    def forget(self) -> None:
        """What was found, as it may have been removed since."""
        self._found.clear()

    async def of(self, hash_parts: Collection[str]) -> dict[str, Said]:
        """For each what is said of whatever path has it. Raises StorageError."""
        said: dict[str, Said] = {}
        waiting: dict[str, asyncio.Future[Said]] = {}
        new: list[str] = []
        with self._lock:
            refused = {part: self._refused.get(part) for part in hash_parts} if self._refused else {}
        for hash_part in hash_parts:
            if known := refused.get(hash_part) or self._found.get(hash_part):
                said[hash_part] = known
            elif hash_part in self._absent or not _HASH_PART.fullmatch(hash_part):
                said[hash_part] = None
            elif asking := self._asking.get(hash_part):
                waiting[hash_part] = asking
            else:
                waiting[hash_part] = self._asking[hash_part] = asyncio.get_running_loop().create_future()
                new.append(hash_part)
        if new:
            self._start(self._find(new))  # outlives those who ask
        if waiting:
            await asyncio.wait(waiting.values())
            said.update((hash_part, asking.result()) for hash_part, asking in waiting.items())
        return said

    def refuse(self, hash_part: str, error: SubstituterError, keys: Iterable[str]) -> None:
        """What there is of that path is no good; `keys` are the names of those that claim to have signed it."""
        self._counts["refused"] += 1
        with self._lock:
            self._refused[hash_part] = error
        log.warning(
            "path-info-refused",
            path=getattr(error, "path", hash_part),
            cache=self._url,
            keys=list(keys),
            reason=error.reason,
        )

    # --- finding what is not known yet --------------------------------------------------------------

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _say(self, hash_part: str, said: Said | Exception) -> None:
        """Answer all who asked."""
        asking = self._asking.pop(hash_part)
        if isinstance(said, Exception) and not isinstance(said, SubstituterError):
            asking.set_exception(said)
            asking.exception()  # seen, even when nobody waits any more
        else:
            asking.set_result(said)

    async def _find(self, hash_parts: Sequence[str]) -> None:
        try:
            recorded = await self._recorded.get(hash_parts)
        except Exception as error:  # whatever it is, somebody waits for it
            for hash_part in hash_parts:
                self._say(hash_part, error)
            return
        for hash_part, narinfo in recorded.items():
            self._found[hash_part] = narinfo
            self._say(hash_part, narinfo)
        pending = iter([hash_part for hash_part in hash_parts if hash_part not in recorded])
        await asyncio.gather(*(self._fetch(pending) for _ in range(min(len(hash_parts), self._concurrency))))
        self._start_checking()

    async def _fetch(self, hash_parts: Iterator[str]) -> None:
        for hash_part in hash_parts:
            try:
                found = await self._fetched(hash_part)
            except Exception as error:  # whatever it is, somebody waits for it
                self._say(hash_part, error)
            else:
                if found is None:
                    self._counts["absent"] += 1
                    self._absent[hash_part] = True
                    self._say(hash_part, None)
                else:
                    self._unchecked.append((hash_part, found))
                    if len(self._unchecked) >= _WORTH_CHECKING:
                        self._start_checking()
            await self._recorded.room()

    async def _fetched(self, hash_part: str) -> NarInfo | None:
        """For that hash part indeed, but not verified. Raises SubstituterError."""
        try:
            content = await self._get(f"{hash_part}.narinfo", MAX_SIZE)
            if content is None:
                return None
            # In a thread it would wait for the event loop's turns, and the loop for its own.
            if len(content) <= LARGE_BYTES:
                found = NarInfo.parse(content, self._url)
            else:
                found = await asyncio.to_thread(NarInfo.parse, content, self._url)
        except InvalidFormat as error:
            corrupt = CorruptPath(self._url, f"{STORE_DIR}/{hash_part}-…", f"{error.kind}: {error.reason}")
            self.refuse(hash_part, corrupt, ())
            raise corrupt from error
        if found.info.path.hash_part == hash_part:
            return found
        reason = f"its narinfo is for {found.info.path}"
        corrupt = CorruptPath(self._url, f"{STORE_DIR}/{hash_part}-…", reason)
        self.refuse(hash_part, corrupt, signers(found.info))
        raise corrupt

    # --- checking -----------------------------------------------------------------------------------

    def _start_checking(self) -> None:
        part = -(-len(self._unchecked) // _CHECKING_THREADS)
        while batch := self._unchecked[:part]:
            del self._unchecked[:part]
            self._start(self._check(batch))

    async def _check(self, batch: Sequence[tuple[str, NarInfo]]) -> None:
        try:
            sound = await asyncio.to_thread(self._are_sound, [found for _, found in batch])
        except Exception as error:  # whatever it is, somebody waits for it
            for hash_part, _ in batch:
                self._say(hash_part, error)
            return
        for (hash_part, found), is_sound in zip(batch, sound, strict=True):
            self._say(hash_part, self._judged(hash_part, found, is_sound))

    def _are_sound(self, found: Iterable[NarInfo]) -> list[bool]:
        """Blocking."""
        keys = self._public_keys
        return [verified_by(one.info, keys) is not None or recomputes(one.info) for one in found]

    def _judged(self, hash_part: str, found: NarInfo, is_sound: bool) -> Said:
        if not is_sound:
            claimed = signers(found.info)
            error = BadSignature(self._url, str(found.info.path), claimed)
            self.refuse(hash_part, error, claimed)
            return error
        self._counts["found"] += 1
        self._found[hash_part] = found
        self._recorded.put(found)
        return found
