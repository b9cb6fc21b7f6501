"""What one substituter says of paths: asked for once, checked before anybody hears of it, and remembered."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

import structlog
from cachetools import LRUCache, TTLCache

from nixery_snap.errors import BadSignature, CorruptPath, InvalidFormat, SubstituterError
from nixery_snap.nix.base32 import ALPHABET
from nixery_snap.nix.content_address import recomputes
from nixery_snap.nix.narinfo import MAX_SIZE, NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.signing import PublicKey, signers, verified_by
from nixery_snap.nix.store_path import STORE_DIR
from nixery_snap.nix_stores.cache_transport import Fetched, TransportFailed
from nixery_snap.nix_stores.narinfo_records import NarInfoRecords
from nixery_snap.nix_stores.questions import Heard
from nixery_snap.ports import Records

log = structlog.get_logger()

LARGE_BYTES: Final = 64 * 1024  # parsing more takes a thread, as it would hold up the event loop
_SUFFIX: Final = ".narinfo"
_HASH_PART: Final = re.compile(f"[{ALPHABET}]{{32}}")
_REMEMBERED: Final = 65_536
_IN_MEMORY: Final = 8192
_WORTH_CHECKING: Final = 128
_AT_A_TIME: Final = 8
_LARGE_AT_A_TIME: Final = 8
_FEW_SIGNATURES: Final = 3
_FEW_REFERENCES: Final = 200

Said = NarInfo | SubstituterError | None
"""Of a path: verified, or what is wrong with it, or that it is not there."""


Get = Callable[[str, int, TransportFailed | None], Awaitable[bytes | None]]
"""Fetches a file of at most so many bytes; a first try may have failed already. Raises SubstituterError."""
GetMany = Callable[[Sequence[str], int, Heard], Awaitable[None]]
"""Fetches as many as can be had at once, and tells those; what failed may be tried again."""


class _Asker:
    """Waits for several paths. `done` has a result when `said` has all."""

    def __init__(self) -> None:
        self.said: dict[str, Said] = {}
        self.left = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(self, hash_part: str, said: Said | Exception) -> None:
        self.left -= 1
        if self.done.done():  # it waits no more
            return
        if isinstance(said, Exception) and not isinstance(said, SubstituterError):
            self.done.set_exception(said)
            self.done.exception()  # seen, even when nobody waits any more
            return
        self.said[hash_part] = said
        if not self.left:
            self.done.set_result(None)


class NarInfos:
    """Those of the substituter `url`, by hash part; `get` and `get_many` fetch them. What is wrong or not there is
    remembered for a time, in seconds, and what is right for ever. Counts "found", "absent" and "refused".
    """

    def __init__(
        self,
        url: str,
        get: Get,
        get_many: GetMany,
        public_keys: Sequence[PublicKey],
        records: Records,
        counts: Counter[str],
        *,
        absent_seconds: float,
        refused_seconds: float,
        concurrency: int,
    ) -> None:
        self._url, self._public_keys, self._counts = url, tuple(public_keys), counts
        self._get, self._get_many, self._concurrency = get, get_many, concurrency
        self._recorded = NarInfoRecords(records, url, public_keys, lambda: bool(self._asking))
        self._found: LRUCache[str, NarInfo] = LRUCache(_IN_MEMORY)
        self._absent: TTLCache[str, bool] = TTLCache(_REMEMBERED, absent_seconds)
        self._refused: TTLCache[str, SubstituterError] = TTLCache(_REMEMBERED, refused_seconds)
        self._lock = threading.Lock()  # readers of NARs refuse from their own threads
        self._asking: dict[str, list[_Asker]] = {}
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
        asker = _Asker()
        new: list[str] = []
        with self._lock:
            refused = {part: self._refused.get(part) for part in hash_parts} if self._refused else {}
        for hash_part in hash_parts:
            if known := refused.get(hash_part) or self._found.get(hash_part):
                asker.said[hash_part] = known
            elif hash_part in self._absent or not _HASH_PART.fullmatch(hash_part):
                asker.said[hash_part] = None
            else:
                asker.left += 1
                if others := self._asking.get(hash_part):
                    others.append(asker)
                else:
                    self._asking[hash_part] = [asker]
                    new.append(hash_part)
        if new:
            self._start(self._find(new))  # outlives those who ask
        if asker.left:
            await asker.done
        return asker.said

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
        for asker in self._asking.pop(hash_part, ()):
            asker.hear(hash_part, said)

    async def _find(self, hash_parts: Sequence[str]) -> None:
        try:
            await self._find_all(hash_parts)
        except Exception as error:  # whatever it is, somebody waits for it
            for hash_part in hash_parts:
                self._say(hash_part, error)
        finally:
            self._start_checking()

    async def _find_all(self, hash_parts: Sequence[str]) -> None:
        recorded = await self._recorded.get(hash_parts)
        for hash_part, narinfo in recorded.items():
            self._found[hash_part] = narinfo
            self._say(hash_part, narinfo)
        left: dict[str, TransportFailed | None] = dict.fromkeys(
            hash_part for hash_part in hash_parts if hash_part not in recorded
        )
        large: list[tuple[str, bytes]] = []

        def told(name: str, content: Fetched | SubstituterError) -> None:
            hash_part = name.removesuffix(_SUFFIX)
            is_large = isinstance(content, bytes) and len(content) > LARGE_BYTES
            if isinstance(content, TransportFailed):
                left[hash_part] = content
                return
            if is_large and len(large) == _LARGE_AT_A_TIME:
                return  # others would fill the memory; one by one they do not
            del left[hash_part]
            if isinstance(content, SubstituterError):
                self._say(hash_part, content)
            elif isinstance(content, bytes) and is_large:
                large.append((hash_part, content))
            else:
                self._take(hash_part, content)

        await self._recorded.room()
        if len(left) > 1:
            await self._get_many([hash_part + _SUFFIX for hash_part in left], MAX_SIZE, told)
        pending = iter(left.items())
        await asyncio.gather(
            *(self._take_large(*one) for one in large),
            *(self._fetch(pending) for _ in range(min(len(left), self._concurrency))),
        )

    async def _fetch(self, pending: Iterator[tuple[str, TransportFailed | None]]) -> None:
        for hash_part, failed in pending:
            content: bytes | InvalidFormat | None
            try:
                content = await self._get(hash_part + _SUFFIX, MAX_SIZE, failed)
            except InvalidFormat as error:
                content = error
            except Exception as error:  # whatever it is, somebody waits for it
                self._say(hash_part, error)
                continue
            if isinstance(content, bytes) and len(content) > LARGE_BYTES:
                await self._take_large(hash_part, content)
            else:
                # In a thread it would wait for the event loop's turns, and the loop for its own.
                self._take(hash_part, content)
            await self._recorded.room()

    async def _take_large(self, hash_part: str, content: bytes) -> None:
        self._settle(hash_part, await asyncio.to_thread(self._parsed, content))

    def _take(self, hash_part: str, content: bytes | InvalidFormat | None) -> None:
        self._settle(hash_part, self._parsed(content) if isinstance(content, bytes) else content)

    def _parsed(self, content: bytes) -> NarInfo | InvalidFormat:
        try:
            return NarInfo.parse(content, self._url)
        except InvalidFormat as error:
            return error

    def _settle(self, hash_part: str, found: NarInfo | InvalidFormat | None) -> None:
        """What is for that hash part indeed is yet to be checked; all else is answered."""
        if found is None:
            self._counts["absent"] += 1
            self._absent[hash_part] = True
            self._say(hash_part, None)
            return
        claimed: tuple[str, ...] = ()
        if isinstance(found, InvalidFormat):
            reason = f"{found.kind}: {found.reason}"
        elif found.info.path.hash_part != hash_part:
            reason, claimed = f"its narinfo is for {found.info.path}", signers(found.info)
        else:
            self._unchecked.append((hash_part, found))
            if len(self._unchecked) >= _WORTH_CHECKING:
                self._start_checking()
            return
        corrupt = CorruptPath(self._url, f"{STORE_DIR}/{hash_part}-…", reason)
        self.refuse(hash_part, corrupt, claimed)
        self._say(hash_part, corrupt)

    # --- checking -----------------------------------------------------------------------------------

    def _start_checking(self) -> None:
        batch, self._unchecked = self._unchecked, []
        if batch:
            self._start(self._check(batch))

    async def _check(self, batch: Sequence[tuple[str, NarInfo]]) -> None:
        sound: set[int] = set()
        light = iter([one for one in batch if _is_light(one[1].info)])
        heavy = [one for one in batch if not _is_light(one[1].info)]
        try:
            if heavy or len(batch) > _AT_A_TIME:
                # The event loop helps one thread: to wake a second can take milliseconds.
                checking = asyncio.to_thread(self._add_sound, chain(heavy, light), sound)
                await asyncio.gather(checking, self._check_here(light, sound))
            else:
                self._add_sound(light, sound)
        except Exception as error:  # whatever it is, somebody waits for it
            for hash_part, _ in batch:
                self._say(hash_part, error)
            return
        for hash_part, found in batch:
            self._say(hash_part, self._judged(hash_part, found, id(found) in sound))

    async def _check_here(self, pending: Iterator[tuple[str, NarInfo]], sound: set[int]) -> None:
        while some := list(islice(pending, _AT_A_TIME)):
            self._add_sound(some, sound)
            await asyncio.sleep(0)  # less than a millisecond has passed

    def _add_sound(self, pending: Iterable[tuple[str, NarInfo]], sound: set[int]) -> None:
        """Blocking. Others may take from `pending`, too. Of one path there may be two narinfos: they go by identity."""
        keys = self._public_keys
        for _, found in pending:
            if verified_by(found.info, keys) is not None or recomputes(found.info):
                sound.add(id(found))

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


def _is_light(info: PathInfo) -> bool:
    """Whether checking it takes no longer than parsing it and verifying a signature or two."""
    return len(info.signatures) <= _FEW_SIGNATURES and len(info.references) <= _FEW_REFERENCES
