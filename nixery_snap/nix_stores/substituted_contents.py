"""What is inside store paths that are in binary caches only: by listing where that will do, else by the NAR."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

import structlog
from cachetools import LRUCache

from nixery_snap.errors import (
    CorruptPath,
    InvalidFormat,
    PathsMissing,
    SubstituterError,
    SubstituterUnreachable,
)
from nixery_snap.nix import listing
from nixery_snap.nix.file_tree import Directory, FileEntry, Node, Regular
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.nix_stores.verified_nar import unverified_root, verified_entries, verified_tree
from nixery_snap.ports import Records

log = structlog.get_logger()

_ROOT: Final = "root"
_ROOTS: Final = "roots"
_TREE: Final = "tree"
_ROOT_BYTES: Final = 128 * 1024  # enough for the first block of most compressions
_NODES_IN_MEMORY: Final = 200_000
_ROOTS_IN_MEMORY: Final = 50_000
_LARGEST_RECORD: Final = 4 * 1024 * 1024


class SubstitutedContents:
    """Implements the port StoreContents for path infos of substituters.

    Where the path's own substituter fails, others that have the same NAR stand in for it. What `entries` reads
    in worker threads is fetched on `loop`.
    """

    def __init__(self, substituters: Substituters, records: Records, loop: asyncio.AbstractEventLoop) -> None:
        self._substituters = substituters
        self._records = records
        self._loop = loop
        self._trees: LRUCache[str, Node] = LRUCache(_NODES_IN_MEMORY, getsizeof=_count)
        self._roots: LRUCache[str, Node] = LRUCache(_ROOTS_IN_MEMORY)

    async def roots(self, infos: Collection[PathInfo]) -> Mapping[StorePath, Node]:
        keys = {info.path: _key(info) for info in infos}
        known = {path: root for path, key in keys.items() if (root := self._roots.get(key)) is not None}
        unknown = [info for info in infos if info.path not in known]
        if unknown:
            # Images ask for all of their paths at once, so that is how they are recorded.
            record = hashlib.sha256("\n".join(keys.values()).encode()).hexdigest()
            found = await self._recorded_roots(record, unknown)
            if found is None:
                roots = await asyncio.gather(*(self._first(info, self._root) for info in unknown))
                found = {info.path: root for info, root in zip(unknown, roots, strict=True)}
                await self._record_roots(record, {**known, **found})
            self._roots.update((keys[path], root) for path, root in found.items())
            known |= found
        return known

    async def file_tree(self, info: PathInfo) -> Node:
        key = _key(info)
        tree = self._trees.get(key)
        if tree is None:
            tree = await self._recorded(_TREE, key)
            if tree is None:
                tree = await self._first(info, self._file_tree)
            if _count(tree) <= _NODES_IN_MEMORY:
                self._trees[key] = tree
        return tree

    def entries(self, info: PathInfo) -> Iterator[FileEntry]:
        candidates = _Candidates(self._substituters, info)
        while True:
            substituter, narinfo = self._wait(candidates.next())
            entries = self._entries(substituter, narinfo)
            try:
                first = next(entries)
            except SubstituterError as error:
                candidates.failed(substituter, error)
                continue
            break
        # From here on it is too late to begin anew.
        with _breaking_off(substituter, info):
            yield first
            yield from entries

    # --- from one substituter -----------------------------------------------------------------------

    async def _root(self, substituter: Substituter, narinfo: NarInfo) -> Node:
        with _refusing_listing(substituter, narinfo.info):
            if (text := await substituter.listing_text(narinfo.info)) is not None:
                return listing.root(text)
        # A NAR is so much longer that what it says is worth a record of its own.
        key = _key(replace(narinfo.info, origin=substituter.url))
        if (recorded := await self._recorded(_ROOT, key)) is not None:
            return recorded
        root = await self._root_of_nar(substituter, narinfo)
        await self._record(_ROOT, key, root)
        return root

    async def _root_of_nar(self, substituter: Substituter, narinfo: NarInfo) -> Node:
        def read(chunks: Iterator[bytes]) -> Node:
            return unverified_root(chunks, narinfo)

        with _refusing(substituter, narinfo.info):
            try:
                return await substituter.read_nar(narinfo, read, _ROOT_BYTES)
            except InvalidFormat:
                # Some compressions have larger blocks.
                if narinfo.file_size is not None and narinfo.file_size <= _ROOT_BYTES:
                    raise
            return await substituter.read_nar(narinfo, read)

    async def _file_tree(self, substituter: Substituter, narinfo: NarInfo) -> Node:
        with _refusing_listing(substituter, narinfo.info):
            if (tree := await substituter.listing(narinfo.info)) is not None:
                return tree
        with _refusing(substituter, narinfo.info):
            tree = await substituter.read_nar(narinfo, lambda chunks: verified_tree(chunks, narinfo))
        await self._record(_TREE, _key(replace(narinfo.info, origin=substituter.url)), tree)
        return tree

    def _entries(self, substituter: Substituter, narinfo: NarInfo) -> Iterator[FileEntry]:
        """Blocking."""
        info = narinfo.info

        def guarded(content: Iterator[bytes]) -> Iterator[bytes]:
            # Read by whoever got the entry: what goes wrong meanwhile does not pass through here otherwise.
            with _refusing(substituter, info), _breaking_off(substituter, info):
                yield from content

        with _refusing(substituter, info), self._blocking(substituter, narinfo) as chunks:
            for entry in verified_entries(chunks, narinfo):
                is_file = isinstance(entry.node, Regular)
                yield replace(entry, content=guarded(entry.content)) if is_file else entry

    @contextmanager
    def _blocking(self, substituter: Substituter, narinfo: NarInfo) -> Iterator[Iterator[bytes]]:
        """`stream_nar` for a worker thread."""
        opening = asyncio.run_coroutine_threadsafe(substituter.open_nar(narinfo), self._loop)
        pipe, transfer = opening.result()
        try:
            yield iter(pipe)
        finally:
            # Not waited for: a reader that is thrown away may end on the event loop's own thread.
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(transfer.cancel)

    # --- from whichever has it ----------------------------------------------------------------------

    async def _first(self, info: PathInfo, read: Callable[[Substituter, NarInfo], Awaitable[Node]]) -> Node:
        candidates = _Candidates(self._substituters, info)
        while True:
            substituter, narinfo = await candidates.next()
            try:
                return await read(substituter, narinfo)
            except SubstituterError as error:
                candidates.failed(substituter, error)

    def _wait(self, work: Awaitable[tuple[Substituter, NarInfo]]) -> tuple[Substituter, NarInfo]:
        async def run() -> tuple[Substituter, NarInfo]:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    # --- what is remembered -------------------------------------------------------------------------

    async def _recorded(self, kind: str, key: str) -> Node | None:
        value = await self._records.get(kind, key)
        if value is None:
            return None
        return await asyncio.to_thread(listing.parse, value["listing"].encode())

    async def _recorded_roots(self, key: str, infos: Collection[PathInfo]) -> dict[StorePath, Node] | None:
        value = await self._records.get(_ROOTS, key)
        if value is None:
            return None
        texts = ((info.path, value.get(info.path.base_name)) for info in infos)
        return {path: listing.parse(text.encode()) if text else Directory() for path, text in texts}

    async def _record_roots(self, key: str, roots: Mapping[StorePath, Node]) -> None:
        """Most are directories, and need no mention."""
        others = {path: root for path, root in roots.items() if not isinstance(root, Directory)}
        with suppress(UnicodeDecodeError):
            value = {path.base_name: listing.encode(root, {}).decode() for path, root in others.items()}
            await self._records.put(_ROOTS, key, value)

    async def _record(self, kind: str, key: str, tree: Node) -> None:
        text = await asyncio.to_thread(listing.encode, tree, {})
        if len(text) > _LARGEST_RECORD:
            return
        with suppress(UnicodeDecodeError):  # names that records cannot hold are read anew
            await self._records.put(kind, key, {"listing": text.decode()})


class _Candidates:
    """Who may have the NAR of `info`, its own substituter first."""

    def __init__(self, substituters: Substituters, info: PathInfo) -> None:
        self._substituters, self._info = substituters, info
        self._errors: dict[str, SubstituterError] = {}
        self._urls = iter((info.origin, *(one.url for one in substituters if one.url != info.origin)))

    async def next(self) -> tuple[Substituter, NarInfo]:
        """Raises the first one's error when none is left, PathsMissing when there was none."""
        for url in self._urls:
            try:
                substituter = self._substituters.get(url)
                narinfo = await substituter.narinfo(self._info.path)
            except KeyError:
                continue
            except SubstituterError as error:
                self._errors[url] = error
                continue
            if narinfo is not None and _same_nar(narinfo.info, self._info):
                return substituter, narinfo
        for first in self._errors.values():
            raise first
        raise PathsMissing((str(self._info.path),))

    def failed(self, substituter: Substituter, error: SubstituterError) -> None:
        self._errors[substituter.url] = error


@contextmanager
def _refusing_listing(substituter: Substituter, info: PathInfo) -> Iterator[None]:
    """A bad one is as good as none: the NAR says the same and is signed."""
    try:
        yield
    except (CorruptPath, InvalidFormat) as error:
        log.warning("listing-refused", cache=substituter.url, path=str(info.path), reason=error.reason)


@contextmanager
def _refusing(substituter: Substituter, info: PathInfo) -> Iterator[None]:
    """What is wrong with a path is known before anybody asks again."""
    try:
        yield
    except InvalidFormat as error:
        raise _refused(substituter, info, str(error)) from error
    except SubstituterUnreachable as error:
        raise _refused(substituter, info, f"its NAR does not come: {error.reason}") from error


@contextmanager
def _breaking_off(substituter: Substituter, info: PathInfo) -> Iterator[None]:
    """A transfer that breaks off too late to begin anew is as bad as a wrong one: the path is had elsewhere."""
    try:
        yield
    except SubstituterUnreachable as error:
        raise _refused(substituter, info, f"its NAR breaks off: {error.reason}") from error


def _refused(substituter: Substituter, info: PathInfo, reason: str) -> CorruptPath:
    error = CorruptPath(substituter.url, str(info.path), reason)
    substituter.refuse(info.path, error)
    return error


def _same_nar(one: PathInfo, other: PathInfo) -> bool:
    return (one.nar_hash, one.nar_size) == (other.nar_hash, other.nar_size)


def _key(info: PathInfo) -> str:
    """Of records and trees: a listing is only as true as who has it."""
    return hashlib.sha256(f"{info.origin}\n{info.path}\n{info.nar_hash}".encode()).hexdigest()


def _count(tree: Node) -> int:
    found, pending = 0, [tree]
    while pending:
        found += 1
        node = pending.pop()
        if isinstance(node, Directory):
            pending.extend(node.entries.values())
    return found
