"""One binary cache as a client sees it. What it says is checked before anybody hears of it, and remembered."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import structlog
from cachetools import TTLCache

from nixery_snap import metrics
from nixery_snap.errors import CorruptPath, InvalidFormat, SubstituterError, SubstituterUnreachable
from nixery_snap.nix import listing
from nixery_snap.nix.file_tree import Node
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.signing import PublicKey, signers
from nixery_snap.nix.store_path import STORE_DIR, StorePath
from nixery_snap.nix_stores.cache_transport import CacheTransport, Fetched, TransportFailed, shown_url
from nixery_snap.nix_stores.decompression import sniffed
from nixery_snap.nix_stores.listings import parse_listing
from nixery_snap.nix_stores.nar_transfer import NarTransfers
from nixery_snap.nix_stores.narinfos import LARGE_BYTES, NarInfos, Said
from nixery_snap.nix_stores.pipe import Pipe
from nixery_snap.nix_stores.questions import Heard, Questions
from nixery_snap.ports import Records

log = structlog.get_logger()
T = TypeVar("T")

DEFAULT_PRIORITY: Final = 50  # of a cache that does not say
_CACHE_INFO_BYTES: Final = 64 * 1024
_REFUSED_SECONDS: Final = 5.0  # at least: whoever tries again must not get the same once more


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
        self._priority = priority
        self._received = metrics.SUBSTITUTER_BYTES.labels(self.url)
        self._questions = Questions(self.url, self.counts, concurrency)
        self._transfers = NarTransfers(self.url, transport, self._questions)
        refused_seconds = max(negative_ttl, _REFUSED_SECONDS)
        self._narinfos = NarInfos(
            self.url,
            self._get,
            self._get_many,
            public_keys,
            records,
            self.counts,
            absent_seconds=negative_ttl,
            refused_seconds=refused_seconds,
            concurrency=concurrency,
        )
        self._unusable: TTLCache[str, SubstituterError] = TTLCache(1, refused_seconds)
        self._asking_priority: asyncio.Task[int] | None = None

    def __repr__(self) -> str:
        return f"Substituter({self.url!r})"

    def forget(self) -> None:
        """What it was seen to have."""
        self._narinfos.forget()

    async def close(self) -> None:
        """Finish writing records, and close the transport."""
        await self._narinfos.close()
        await self._transport.close()

    @property
    def is_sound(self) -> bool:
        """Whether it answers, as far as is known without asking."""
        return self._questions.are_answered and not self._unusable

    # --- what it says of itself ---------------------------------------------------------------------

    @property
    def known_priority(self) -> int | None:
        """None as long as nobody has asked the cache."""
        return self._priority

    async def priority(self) -> int:
        """Lower is asked first. Raises SubstituterError, also for a cache of another store directory."""
        if self._priority is None:
            # Equal questions are one; it outlives those who ask.
            if self._asking_priority is None:
                self._asking_priority = asyncio.ensure_future(self._cache_info())
                self._asking_priority.add_done_callback(self._priority_told)
            await asyncio.wait({asking := self._asking_priority})
            self._priority = asking.result()
        return self._priority

    def _priority_told(self, asking: asyncio.Task[int]) -> None:
        self._asking_priority = None
        if not asking.cancelled():
            asking.exception()  # seen, even when nobody waits any more

    async def _cache_info(self) -> int:
        if error := self._unusable.get(""):
            raise error.with_traceback(None)
        try:
            content = await self._get("nix-cache-info", _CACHE_INFO_BYTES)
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

    # --- what it says of paths ----------------------------------------------------------------------

    async def narinfo(self, path: StorePath) -> NarInfo | None:
        """Verified; None when it has not the path. Raises SubstituterError."""
        return _raised((await self.narinfos((path,))).get(path))

    async def narinfo_by_hash(self, hash_part: str) -> NarInfo | None:
        """The same for whatever path has that hash part."""
        return _raised((await self._said((hash_part,)))[hash_part])

    async def narinfos(self, paths: Collection[StorePath]) -> Mapping[StorePath, NarInfo | SubstituterError]:
        """The same for many paths, with what is wrong in place of what would be raised; without what it has not."""
        said = await self._said([path.hash_part for path in paths])
        answers: dict[StorePath, NarInfo | SubstituterError] = {}
        for path in paths:
            found = said[path.hash_part]
            if isinstance(found, NarInfo) and found.info.path != path:
                error = CorruptPath(self.url, str(path), f"its narinfo is for {found.info.path}")
                self._narinfos.refuse(path.hash_part, error, signers(found.info))
                answers[path] = error
            elif found is not None:
                answers[path] = found
        return answers

    def refuse(self, path: StorePath, error: SubstituterError) -> None:
        """What the cache has of `path` is no good: `narinfo` raises `error` for `negative_ttl`, or a little longer."""
        self._narinfos.refuse(path.hash_part, error, ())

    async def _said(self, hash_parts: Collection[str]) -> dict[str, Said]:
        if error := self._unusable.get(""):
            return dict.fromkeys(hash_parts, error)
        return await self._narinfos.of(hash_parts)

    # --- files --------------------------------------------------------------------------------------

    async def listing_text(self, info: PathInfo) -> bytes | None:
        """The JSON of a path's listing, None where the cache has none. Raises SubstituterError.

        Nobody signs listings: it is no more to be trusted than the cache.
        """
        name = f"{info.path.hash_part}.ls"
        try:
            content = await self._get(name, listing.MAX_SIZE)
            if content is None or (content.startswith(b"{") and len(content) <= LARGE_BYTES):
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
            if len(text) <= LARGE_BYTES:
                return listing.parse(text)
            return await asyncio.to_thread(parse_listing, text)
        except InvalidFormat as error:
            raise CorruptPath(self.url, str(info.path), f"its listing: {error.reason}") from error

    async def read_nar(
        self, narinfo: NarInfo, read: Callable[[Iterator[bytes]], T], first_bytes: int | None = None
    ) -> T:
        """What `read` makes of the compressed NAR in a worker thread, one of a few. Raises SubstituterError."""
        async with self._transfers.turns, self.stream_nar(narinfo, first_bytes) as chunks:
            return await self._transfers.read(read, chunks)

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
        opened = await self._transfers.open(narinfo.url, first_bytes)
        if opened is None:
            error = CorruptPath(self.url, str(narinfo.info.path), f"there is no {narinfo.url}")
            self.refuse(narinfo.info.path, error)
            raise error
        return opened

    async def _get(self, name: str, max_bytes: int, failed: TransportFailed | None = None) -> bytes | None:
        content = await self._questions.ask(lambda: self._transport.get(name, max_bytes), failed)
        if content:
            self._received.inc(len(content))
        return content

    async def _get_many(self, names: Sequence[str], max_bytes: int, told: Heard) -> None:
        received = 0

        def count(name: str, content: Fetched | SubstituterUnreachable) -> None:
            nonlocal received
            if isinstance(content, bytes):
                received += len(content)
            told(name, content)

        await self._questions.ask_many(self._transport, names, max_bytes, count)
        self._received.inc(received)


def _raised(said: Said) -> NarInfo | None:
    if isinstance(said, SubstituterError):
        raise said.with_traceback(None)
    return said
