"""One binary cache as a client sees it. What it says is checked before anybody hears of it, and remembered."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import structlog
from cachetools import LRUCache, TTLCache

from nixery_snap.errors import (
    BadSignature,
    CorruptPath,
    InvalidFormat,
    StorageError,
    SubstituterError,
    SubstituterUnreachable,
)
from nixery_snap.nix import listing
from nixery_snap.nix.base32 import ALPHABET
from nixery_snap.nix.content_address import recomputes
from nixery_snap.nix.file_tree import Node
from nixery_snap.nix.narinfo import MAX_SIZE, NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.signing import PublicKey, signers, verified_by
from nixery_snap.nix.store_path import STORE_DIR, StorePath
from nixery_snap.nix_stores.cache_transport import CacheTransport, TransportFailed, shown_url
from nixery_snap.nix_stores.circuit_breaker import OPEN_SECONDS, CircuitBreaker, CircuitOpen
from nixery_snap.nix_stores.decompression import sniffed
from nixery_snap.nix_stores.pipe import Pipe
from nixery_snap.ports import Records

log = structlog.get_logger()
T = TypeVar("T")

DEFAULT_PRIORITY: Final = 50  # of a cache that does not say
_KIND: Final = "narinfo"
_HASH_PART: Final = re.compile(f"[{ALPHABET}]{{32}}")
_CACHE_INFO_BYTES: Final = 64 * 1024
_LARGE_BYTES: Final = 64 * 1024  # parsing more takes a thread, as it would hold up the event loop
_TRIES: Final = 3
_BACK_OFF_SECONDS: Final = 0.1
_MAX_WAIT_SECONDS: Final = 5.0  # a Retry-After beyond it is taken for a no
_REFUSED_SECONDS: Final = 5.0  # at least: whoever tries again must not get the same once more
_REMEMBERED: Final = 65_536
_IN_MEMORY: Final = 8192
_UNWRITTEN: Final = 4096
_WRITERS: Final = 4
_PAUSE_SECONDS: Final = 0.05


class Substituter:
    """`url` is shown without its secrets. A path info is taken when one of `public_keys` has signed it, or when
    its content address gives its path.

    `negative_ttl` seconds it is remembered what the cache has not, and what was wrong with what it has; what
    it has is remembered in `records`. At most `concurrency` requests are under
    way, so that a slow cache leaves room for others.
    """

    def __init__(
        self,
        url: str,
        transport: CacheTransport,
        public_keys: Sequence[PublicKey],
        records: Records,
        *,
        priority: int | None = None,
        negative_ttl: float = 60,
        concurrency: int = 32,
    ) -> None:
        self.url: Final = shown_url(url)
        self.counts: Counter[str] = Counter()
        self._transport = transport
        self._public_keys = tuple(public_keys)
        self._records = records
        self._priority = priority
        self._turns = asyncio.Semaphore(concurrency)
        self._breaker = CircuitBreaker(self._opened)
        self._found: LRUCache[str, NarInfo] = LRUCache(_IN_MEMORY)
        self._absent: TTLCache[str, bool] = TTLCache(_REMEMBERED, negative_ttl)
        refused_seconds = max(negative_ttl, _REFUSED_SECONDS)
        self._refused: TTLCache[str, SubstituterError] = TTLCache(_REMEMBERED, refused_seconds)
        self._lock = threading.Lock()  # readers of NARs refuse from their own threads
        self._unusable: TTLCache[str, SubstituterError] = TTLCache(1, refused_seconds)
        self._asking: dict[str, asyncio.Task[Any]] = {}
        self._unwritten: deque[tuple[str, Any]] = deque()
        self._writers: set[asyncio.Task[None]] = set()
        # Other keys would have taken other path infos.
        self._salt = "\n".join([self.url, *sorted(map(str, public_keys)), ""])

    def __repr__(self) -> str:
        return f"Substituter({self.url!r})"

    async def close(self) -> None:
        """Finish writing records, and close the transport."""
        while self._writers:
            await asyncio.wait(self._writers)
        await self._transport.close()

    @property
    def is_sound(self) -> bool:
        """Whether it answers, as far as is known without asking."""
        return self._breaker.is_sound and not self._unusable

    # --- what it says of itself ---------------------------------------------------------------------

    @property
    def known_priority(self) -> int | None:
        """None as long as nobody has asked the cache."""
        return self._priority

    async def priority(self) -> int:
        """Lower is asked first. Raises SubstituterError, also for a cache of another store directory."""
        if self._priority is None:
            self._priority = await self._once("nix-cache-info", self._cache_info)
        return self._priority

    async def _cache_info(self) -> int:
        self._raise_unusable()
        try:
            content = await self._ask(lambda: self._transport.get("nix-cache-info", _CACHE_INFO_BYTES))
            lines = (content or b"").decode().splitlines()
            fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
            store_dir, priority = fields.get("StoreDir", STORE_DIR), fields.get("Priority", "")
        except (InvalidFormat, UnicodeDecodeError) as error:
            raise self._useless("has no nix-cache-info that can be read") from error
        if store_dir != STORE_DIR:
            raise self._useless(f"serves the store directory {store_dir[:200]!r}, not {STORE_DIR}")
        return int(priority) if re.fullmatch("[0-9]{1,9}", priority) else DEFAULT_PRIORITY

    def _useless(self, reason: str) -> SubstituterError:
        error = self._unusable[""] = SubstituterError(self.url, reason)
        log.warning("substituter-unusable", url=self.url, reason=reason)
        return error

    def _raise_unusable(self) -> None:
        if error := self._unusable.get(""):
            raise error.with_traceback(None)

    # --- what it says of paths ----------------------------------------------------------------------

    async def narinfo(self, path: StorePath) -> NarInfo | None:
        """Verified; None when it has not the path. Raises SubstituterError."""
        found = await self.narinfo_by_hash(path.hash_part)
        if found is not None and found.info.path != path:
            error = CorruptPath(self.url, str(path), f"its narinfo is for {found.info.path}")
            self._refuse(path.hash_part, error, signers(found.info))
            raise error
        return found

    async def narinfo_by_hash(self, hash_part: str) -> NarInfo | None:
        """The same for whatever path has that hash part."""
        self._raise_unusable()
        with self._lock:
            refused = self._refused.get(hash_part)
        if refused is not None:
            raise refused.with_traceback(None)
        if found := self._found.get(hash_part):
            return found
        if hash_part in self._absent or not _HASH_PART.fullmatch(hash_part):
            return None
        return await self._once(hash_part, lambda: self._find(hash_part))

    def refuse(self, path: StorePath, error: SubstituterError) -> None:
        """What the cache has of `path` is no good: `narinfo` raises `error` for `negative_ttl`, or a little longer."""
        self._refuse(path.hash_part, error, ())

    async def _find(self, hash_part: str) -> NarInfo | None:
        key = hashlib.sha256((self._salt + hash_part).encode()).hexdigest()
        found = self._recorded(await self._records.get(_KIND, key))
        if found is None:
            try:
                content = await self._ask(lambda: self._transport.get(f"{hash_part}.narinfo", MAX_SIZE))
                if content is None:
                    self.counts["absent"] += 1
                    self._absent[hash_part] = True
                    return None
                found = NarInfo.parse(content, self.url)
                self._check(hash_part, found.info)
            except InvalidFormat as error:
                shown = f"{STORE_DIR}/{hash_part}-…"
                corrupt = CorruptPath(self.url, shown, f"{error.kind}: {error.reason}")
                self._refuse(hash_part, corrupt, ())
                raise corrupt from error
            self.counts["found"] += 1
            await self._record(key, found)
        self._found[hash_part] = found
        return found

    def _check(self, hash_part: str, info: PathInfo) -> None:
        """Raises CorruptPath, BadSignature."""
        error: CorruptPath
        if info.path.hash_part != hash_part:
            shown = f"{STORE_DIR}/{hash_part}-…"
            error = CorruptPath(self.url, shown, f"its narinfo is for {info.path}")
        elif verified_by(info, self._public_keys) is None and not recomputes(info):
            error = BadSignature(self.url, str(info.path), signers(info))
        else:
            return
        self._refuse(hash_part, error, signers(info))
        raise error

    def _refuse(self, hash_part: str, error: SubstituterError, keys: Iterable[str]) -> None:
        self.counts["refused"] += 1
        with self._lock:
            self._refused[hash_part] = error
        log.warning(
            "path-info-refused",
            path=getattr(error, "path", hash_part),
            cache=self.url,
            keys=list(keys),
            reason=error.reason,
        )

    # --- what is remembered -------------------------------------------------------------------------

    def _recorded(self, value: Any) -> NarInfo | None:
        if value is None:
            return None
        try:
            return NarInfo.parse(value["narinfo"].encode(), self.url)
        except InvalidFormat:  # written by a version with other rules
            return None

    async def _record(self, key: str, narinfo: NarInfo) -> None:
        """In the background: a closure must not wait for thousands of small writes."""
        value = {"narinfo": bytes(narinfo).decode()}
        if len(self._unwritten) >= _UNWRITTEN:
            await self._write(key, value)
            return
        self._unwritten.append((key, value))
        if len(self._writers) < _WRITERS:
            writer = asyncio.ensure_future(self._write_all())
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)

    async def _write_all(self) -> None:
        while self._unwritten:
            # Questions go first.
            while self._asking and len(self._unwritten) < _UNWRITTEN // 2:  # noqa: ASYNC110 - no hurry
                await asyncio.sleep(_PAUSE_SECONDS)
            if self._unwritten:
                await self._write(*self._unwritten.popleft())

    async def _write(self, key: str, value: Any) -> None:
        try:
            await self._records.put(_KIND, key, value)
        except StorageError as error:
            log.warning("record-not-written", kind=_KIND, key=key, reason=str(error))

    # --- files --------------------------------------------------------------------------------------

    async def listing_text(self, info: PathInfo) -> bytes | None:
        """The JSON of a path's listing, None where the cache has none. Raises SubstituterError.

        Nobody signs listings: it is no more to be trusted than the cache.
        """
        name = f"{info.path.hash_part}.ls"
        try:
            content = await self._ask(lambda: self._transport.get(name, listing.MAX_SIZE))
            if content is None or (content.startswith(b"{") and len(content) <= _LARGE_BYTES):
                return content
            return await asyncio.to_thread(sniffed, content, listing.MAX_SIZE)
        except InvalidFormat as error:
            raise CorruptPath(self.url, str(info.path), f"its listing: {error.reason}") from error

    async def listing(self, info: PathInfo) -> Node | None:
        """The file tree that the path's listing shows. Raises SubstituterError."""
        text = await self.listing_text(info)
        if text is None:
            return None
        try:
            if len(text) <= _LARGE_BYTES:
                return listing.parse(text)
            return await asyncio.to_thread(listing.parse, text)
        except InvalidFormat as error:
            raise CorruptPath(self.url, str(info.path), f"its listing: {error.reason}") from error

    @asynccontextmanager
    async def stream_nar(
        self, narinfo: NarInfo, first_bytes: int | None = None
    ) -> AsyncIterator[Iterator[bytes]]:
        """The compressed NAR, to be read by one worker thread; it is not checked. Raises SubstituterError.

        No more than `first_bytes` need come. Leaving ends the transfer.
        """
        pipe, transfer = await self.open_nar(narinfo, first_bytes)
        try:
            yield iter(pipe)
        finally:
            transfer.cancel()
            await asyncio.wait({transfer})

    async def open_nar(
        self, narinfo: NarInfo, first_bytes: int | None = None
    ) -> tuple[Pipe, asyncio.Task[None]]:
        """The same for those who end the transfer by themselves, by cancelling it."""
        opened = await self._ask(lambda: self._open(narinfo.url, first_bytes))
        if opened is None:
            error = CorruptPath(self.url, str(narinfo.info.path), f"there is no {narinfo.url}")
            self.refuse(narinfo.info.path, error)
            raise error
        return opened

    async def _open(self, name: str, first_bytes: int | None) -> tuple[Pipe, asyncio.Task[None]] | None:
        """None for a file that is not there. Raises TransportFailed."""
        pipe, opened = Pipe(), asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._pump(name, first_bytes, pipe, opened))
        try:
            return (pipe, task) if await opened else None
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _pump(
        self, name: str, first_bytes: int | None, pipe: Pipe, opened: asyncio.Future[bool]
    ) -> None:
        try:
            async with self._transport.stream(name, first_bytes) as chunks:
                opened.set_result(True)
                async for chunk in chunks:
                    await pipe.put(chunk)
            pipe.end()
        except FileNotFoundError:
            pass  # seen by `opened`, below
        except TransportFailed as error:
            if opened.done():
                self.counts["failures"] += 1
                self._breaker.failed(error.reason)
                pipe.end(SubstituterUnreachable(self.url, error.reason))
            else:
                opened.set_exception(error)
        except Exception as error:  # whatever it is, somebody waits for it
            if opened.done():
                pipe.end(error)
            else:
                opened.set_exception(error)
        finally:
            pipe.end(SubstituterUnreachable(self.url, "the transfer was given up"))
            if not opened.done():
                opened.set_result(False)

    # --- asking -------------------------------------------------------------------------------------

    async def _once(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """Equal questions are one; it outlives those who ask."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.ensure_future(work())
            task.add_done_callback(lambda task: self._answered(key, task))
        await asyncio.wait({task})
        answer: T = task.result()
        return answer

    def _answered(self, key: str, task: asyncio.Task[Any]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # seen, even when nobody waits any more

    async def _ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """With as many tries as it takes. Raises SubstituterUnreachable."""
        try:
            with self._breaker.attempt() as check:
                # Waiting for the next try keeps the turn: a cache that fails gets no more questions than it has.
                async with self._turns:
                    for tried in range(1, _TRIES + 1):
                        check()
                        try:
                            return await self._counted(work)
                        except TransportFailed as error:
                            wait_seconds = _wait_seconds(tried, error)
                            if wait_seconds is None:
                                self._breaker.failed(error.reason)
                                raise SubstituterUnreachable(self.url, error.reason) from error
                        await asyncio.sleep(wait_seconds)
        except CircuitOpen as error:
            raise SubstituterUnreachable(self.url, f"{error.reason}; it is left alone for a while") from None
        raise AssertionError("the last try waits for nothing")

    async def _counted(self, work: Callable[[], Awaitable[T]]) -> T:
        self.counts["requests"] += 1
        try:
            answer = await work()
        except TransportFailed:
            self.counts["failures"] += 1
            raise
        except InvalidFormat:
            self._breaker.succeeded()  # it answers, if nonsense
            raise
        self._breaker.succeeded()
        return answer

    def _opened(self, reason: str) -> None:
        log.warning("substituter-unreachable", url=self.url, reason=reason, seconds=OPEN_SECONDS)


def _wait_seconds(tried: int, error: TransportFailed) -> float | None:
    """How long to wait before the next try; None: there is none."""
    wanted = error.retry_after_seconds
    if not error.retry or tried == _TRIES or (wanted or 0) > _MAX_WAIT_SECONDS:
        return None
    back_off: float = _BACK_OFF_SECONDS * (1 << (tried - 1)) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
    return max(back_off, wanted or 0)
