"""Our own binary cache: what no other cache has is written to it, and what it lacks it may fetch from others."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from nixery_snap.errors import (
    CorruptPath,
    InvalidFormat,
    StorageError,
    SubstituterError,
    SubstituterUnreachable,
)
from nixery_snap.nix import base32, listing, nar
from nixery_snap.nix.file_tree import FileEntry, Node, tree_of
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.signing import SecretKey
from nixery_snap.nix.store_path import STORE_DIR
from nixery_snap.nix_stores.build_logs import BuildLogs
from nixery_snap.nix_stores.listings import parse_listing
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.nix_stores.verified_nar import verified_entries
from nixery_snap.ports import CacheFiles, CacheFileWriter, Location, StoreContents

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

log = structlog.get_logger()
T = TypeVar("T")

_LEVEL: Final = 3  # of zstd; more costs clients more waiting than it saves them
_SUFFIXES: Final = {"xz": ".xz", "zstd": ".zst", "bzip2": ".bz2", "br": ".br", "gzip": ".gz"}
_HASH_PART_LENGTH: Final = 32
_FILE_HASH_LENGTH: Final = 52


class OwnCache:
    """Implements the port BinaryCache over `files`, signing with `key`.

    Store paths come from the local store (`contents`, `logs`) and, where they or clients ask for more, from
    `upstreams`, in this order.
    """

    def __init__(
        self,
        files: CacheFiles,
        key: SecretKey,
        contents: StoreContents,
        logs: BuildLogs,
        upstreams: tuple[Substituter, ...],
    ) -> None:
        self._files = files
        self._key = key
        self._contents = contents
        self._logs = logs
        self._upstreams = upstreams
        self._under_way: dict[tuple[str, str], asyncio.Task[Any]] = {}

    async def initialise(self, priority: int) -> None:
        """Say what the bucket is to those who use it without this server."""
        content = f"StoreDir: {STORE_DIR}\nWantMassQuery: 1\nPriority: {priority}\n".encode()
        if await self._files.get("nix-cache-info") != content:
            await self._files.put("nix-cache-info", content)

    async def narinfo(self, hash_part: str) -> bytes | None:
        if content := await self._files.get(f"{hash_part}.narinfo"):
            return content
        return await self._from_upstreams(hash_part, self._read_through)

    def narinfo_at_once(self, hash_part: str) -> bytes | None:
        return self._files.get_at_once(f"{hash_part}.narinfo") or None

    async def file(self, name: str) -> Location | None:
        if location := await self._files.locate(name):
            return location
        kind, _, rest = name.rpartition("/")
        hash_part, _, suffix = rest.partition(".")
        if not self._upstreams or kind == "log":
            return None
        if not kind and suffix == "ls":
            with suppress(SubstituterUnreachable):  # clients can do without
                return await self._from_upstreams(hash_part, self._listing)
        if len(hash_part) != _HASH_PART_LENGTH + _FILE_HASH_LENGTH:
            return None
        # Who comes while another is at it must not look by himself first: the other could end meanwhile.
        return await self._once(("", name), lambda: self._fetched(hash_part[:_HASH_PART_LENGTH], name))

    async def _once(self, key: tuple[str, str], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns, which goes on for all who ask meanwhile, even when none of them waits any more."""
        task: asyncio.Task[T] | None = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(work())

            def end(ended: asyncio.Task[T]) -> None:
                del self._under_way[key]
                if not ended.cancelled():
                    ended.exception()  # seen, though nobody may wait any more

            task.add_done_callback(end)
        return await asyncio.shield(task)

    async def _from_upstreams(
        self, hash_part: str, read: Callable[[Substituter, NarInfo], Awaitable[T | None]]
    ) -> T | None:
        """What `read` makes of the first upstream that has the path; one that fails is passed over.

        Raises SubstituterUnreachable when all of them are: nobody knows whether there is such a path.
        """
        unreachable = []
        for substituter in self._upstreams:
            try:
                narinfo = await substituter.narinfo_by_hash(hash_part)
                if narinfo is not None and (found := await read(substituter, narinfo)) is not None:
                    return found
            except SubstituterError as error:
                log.warning("upstream-passed-over", cache=error.url, hash_part=hash_part, reason=error.reason)
                if isinstance(error, SubstituterUnreachable):
                    unreachable.append(error)
        if unreachable and len(unreachable) == len(self._upstreams):
            raise unreachable[0]
        return None

    async def _read_through(self, _: Substituter, narinfo: NarInfo) -> bytes:
        # What is believed for its content address alone has not been looked at yet, and needs no signature.
        signed = narinfo if narinfo.info.content_address else self._signed(narinfo)
        return bytes(replace(signed, url=_url(narinfo)))

    async def _fetched(self, hash_part: str, url: str) -> Location | None:
        """The NAR of a path that upstreams have, kept from now on."""

        async def copied(substituter: Substituter, narinfo: NarInfo) -> Location | None:
            # Builds, and how they are compressed, differ: the client has been told of one of them.
            if _url(narinfo) != url:
                return None
            copy = await self.mirror(substituter, narinfo)
            await self.announce(copy)
            return await self._files.locate(copy.url)

        if content := await self._files.get(f"{hash_part}.narinfo"):
            mine = NarInfo.parse(content)
            if _url(mine) == url and (location := await self._files.locate(mine.url)):
                return location
        return await self._from_upstreams(hash_part, copied)

    async def _listing(self, substituter: Substituter, narinfo: NarInfo) -> Location | None:
        if not await self._keep_listing(substituter, narinfo):
            return None
        return await self._files.locate(f"{narinfo.info.path.hash_part}.ls")

    async def _keep_listing(self, substituter: Substituter, narinfo: NarInfo) -> bool:
        """Whether there is one. Raises SubstituterError."""
        path = narinfo.info.path
        if (text := await substituter.listing_text(narinfo.info)) is None:
            return False
        try:
            await asyncio.to_thread(parse_listing, text)
        except InvalidFormat as error:
            raise CorruptPath(substituter.url, str(path), f"its listing: {error.reason}") from error
        await self._files.put(f"{path.hash_part}.ls", text)
        return True

    def _signed(self, narinfo: NarInfo) -> NarInfo:
        """With our signature too: its signature, or its content, has been verified."""
        mine = self._key.sign(narinfo.info)
        signatures = dict.fromkeys((*narinfo.info.signatures, mine))
        return replace(narinfo, info=replace(narinfo.info, signatures=tuple(signatures)))

    # --- writing ------------------------------------------------------------------------------------

    async def add_local(self, info: PathInfo) -> NarInfo:
        """Write the NAR of a path of the local store and what belongs to it, all but the narinfo."""
        narinfo, tree = await asyncio.to_thread(self._dump, info, self._contents.entries(info))
        await self._files.put(f"{info.path.hash_part}.ls", tree)
        if info.deriver and (text := await asyncio.to_thread(self._logs.read, info.deriver)):
            await self._files.put(f"log/{info.deriver.base_name}", text)
        return narinfo

    async def add_entries(self, info: PathInfo, entries: Iterator[FileEntry]) -> None:
        """Write a path that no store has, narinfo included."""
        narinfo, tree = await asyncio.to_thread(self._dump, info, entries)
        await self._files.put(f"{info.path.hash_part}.ls", tree)
        await self.announce(narinfo)

    async def mirror(self, substituter: Substituter, narinfo: NarInfo) -> NarInfo:
        """Copy a path from another cache as it is, all but the narinfo. Raises SubstituterError."""
        key = substituter.url, _url(narinfo)
        return await self._once(key, lambda: self._mirror(substituter, narinfo))

    async def _mirror(self, substituter: Substituter, narinfo: NarInfo) -> NarInfo:
        copy = await substituter.read_nar(narinfo, partial(self._copy, substituter, narinfo))
        try:
            await self._keep_listing(substituter, narinfo)
        except SubstituterError as error:  # it can be done without
            log.warning(
                "listing-refused", cache=substituter.url, path=str(narinfo.info.path), reason=error.reason
            )
        return copy

    async def announce(self, narinfo: NarInfo) -> None:
        """Write the narinfo, which makes a path part of the cache: its references' come before it."""
        await self._files.put(f"{narinfo.info.path.hash_part}.narinfo", bytes(self._signed(narinfo)))

    def _dump(self, info: PathInfo, entries: Iterator[FileEntry]) -> tuple[NarInfo, bytes]:
        """Blocking: pack a NAR and publish it under the name of its file hash."""
        nodes: list[tuple[bytes, Node]] = []
        offsets: dict[bytes, int] = {}
        nar_hash, nar_size = hashlib.sha256(), 0
        compressor = zstd.ZstdCompressor(_LEVEL)

        def noted() -> Iterator[FileEntry]:
            for entry in entries:
                nodes.append((entry.name, entry.node))
                yield entry

        with self._files.writer() as writer:
            file = _HashedFile(writer)
            for chunk in nar.write(noted(), offsets):
                nar_hash.update(chunk)
                nar_size += len(chunk)
                file.write(compressor.compress(chunk))
            file.write(compressor.flush())
            if (f"sha256:{base32.encode(nar_hash.digest())}", nar_size) != (info.nar_hash, info.nar_size):
                raise StorageError(
                    f"{info.path} is not what the Nix store's database says; nix-store --verify"
                    " --check-contents --repair mends it"
                )
            narinfo = file.commit(info, "zstd")
        return narinfo, listing.encode(tree_of(nodes), offsets)

    def _copy(self, substituter: Substituter, narinfo: NarInfo, chunks: Iterator[bytes]) -> NarInfo:
        """Blocking: write the compressed NAR as it comes, and check what it holds."""
        with self._files.writer() as writer:
            file = _HashedFile(writer)
            try:
                for _ in verified_entries(file.passing(chunks), narinfo):
                    pass
            except InvalidFormat as error:
                refusal = CorruptPath(substituter.url, str(narinfo.info.path), f"its NAR: {error.reason}")
                substituter.refuse(narinfo.info.path, refusal)
                raise refusal from error
            return file.commit(narinfo.info, narinfo.compression)


class _HashedFile:
    """A NAR file being written, which will be named by its hash."""

    def __init__(self, writer: CacheFileWriter) -> None:
        self._writer = writer
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def write(self, chunk: bytes) -> None:
        self._writer.write(chunk)
        self._hash.update(chunk)
        self._size_bytes += len(chunk)

    def passing(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.write(chunk)
            yield chunk

    def commit(self, info: PathInfo, compression: str) -> NarInfo:
        file_hash = base32.encode(self._hash.digest())
        name = f"nar/{file_hash}.nar{_SUFFIXES.get(compression, '')}"
        self._writer.commit(name)
        return NarInfo(info, name, compression, f"sha256:{file_hash}", self._size_bytes)


def _url(narinfo: NarInfo) -> str:
    """By which a path of an upstream is found again when its NAR is asked for."""
    name = narinfo.info.path.hash_part + narinfo.info.nar_hash.removeprefix("sha256:")
    return f"nar/{name}.nar{_SUFFIXES.get(narinfo.compression, '')}"
