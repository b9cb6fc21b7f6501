"""Copies a store into another one, so that the other one can be served at every moment: what is named comes first.

Blobs and NARs are compared with the hashes in their names on the way. What the target has already, in the same size,
is not copied again: so a copy that was broken off goes on where it stopped. The source may be in use: what is written
meanwhile comes along if it is found in time, else with the next copy.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

import structlog

from nixery_snap.errors import InvalidFormat, SettingsError
from nixery_snap.nix import base32
from nixery_snap.object_store import keys, references
from nixery_snap.object_store.contents import named_by
from nixery_snap.object_store.marking import LISTING, NARINFO, is_narinfo, is_of_cache, read_narinfo
from nixery_snap.object_store.references import Part
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweeps import Sweeps
from nixery_snap.object_store.walking import Names, Stored, each, listed, objects

log = structlog.get_logger()

_SEPARATE: Final = "separate"
# What a process tells others of the same store, what belongs to the place, and stores within the store.
_STAYS: Final = (
    *(f"{keys.LEASES}/", f"{keys.STAGING}/", "secrets/", f"{_SEPARATE}/"),
    *(keys.FORMAT, keys.SWEEP, keys.USAGE_BEGIN),
)
_MOVING: Final = ("pins/", f"{keys.IMAGE_NAMES}/", "nix-cache-info")
_SMALL_BYTES: Final = 1024 * 1024
_RECORD_ORDER: Final = (
    *("recipe", *references.MEMO_KINDS, *references.LAYER_KINDS, "index-part", "index", "image"),
)
_NIX_BASE32_LENGTH: Final = 52
_PACE_SECONDS: Final = 30  # as sweeps have it at most

Advance = Callable[[int, int], None]
"""Takes how many more objects and bytes are done."""


@dataclass(slots=True)
class Copied:
    """`objects` and `bytes` were copied, `present` were there, `broken` were left behind."""

    objects: int = 0
    bytes: int = 0
    present: int = 0
    broken: int = 0


async def stores_of(url: str) -> list[str]:
    """What is to be added to the path of a store's URL: nothing, for itself, and for those within it.

    Raises SettingsError where there is no store.
    """
    parts = urlsplit(url)
    # Opening it would make it, and a mistyped name is no empty store.
    if parts.scheme == "file" and not await asyncio.to_thread(Path(unquote(parts.path)).is_dir):
        raise SettingsError("", f"there is no directory {unquote(parts.path)}")
    names = {one.key.split("/")[1] async for one in objects(ObjectStore(url), _SEPARATE)}
    return ["", *(f"/{_SEPARATE}/{name}" for name in sorted(names))]


def store_at(url: str, path: str) -> ObjectStore:
    """One of those of `stores_of`, or its counterpart. Raises SettingsError."""
    parts = urlsplit(url)
    return ObjectStore(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}{path}")) if path else url)


async def totals(source: ObjectStore) -> tuple[int, int]:
    """Objects and bytes that there are to copy. Raises StorageError."""
    count = size = 0
    async for one in objects(source):
        if _is_copied(one.key):
            count, size = count + 1, size + one.size_bytes
    return count, size


async def copy(source: ObjectStore, target: ObjectStore, advance: Advance) -> Copied:
    """Raises StorageError."""
    sweeps, swept, copied = Sweeps(target, _PACE_SECONDS), None, Copied()
    # Again when servers of the target may just have removed what nothing named there yet.
    while swept != (now := await sweeps.settled()):
        swept = now
        one = _Copy(source, target, advance)
        await one.run()
        copied = replace(
            one.copied, objects=copied.objects + one.copied.objects, bytes=copied.bytes + one.copied.bytes
        )
    return copied


class _Copy:
    def __init__(self, source: ObjectStore, target: ObjectStore, advance: Advance) -> None:
        self.copied = Copied()
        self._source = source
        self._target = target
        self._advance = advance
        self._done = Names()  # in the target
        self._sizes: dict[int, int] = {}  # of what the target had before, by number as in Names

    async def run(self) -> None:
        async for one in objects(self._target):
            self._sizes[hash(one.key)] = one.size_bytes
        manifests: list[Stored] = []
        indexes: list[Stored] = []

        async def blob(one: Stored) -> None:
            if (named := await named_by(self._source, one)) is None:
                await self._stored(one)
            else:
                (indexes if named.manifests else manifests).append(one)

        # A manifest that is in this list has had its paths in the binary cache before.
        await each(objects(self._source, "blobs"), blob)
        for prefix in ("nar", "log"):
            await each(objects(self._source, prefix), self._stored)
        await each((one async for one in objects(self._source) if _is_listing(one)), self._stored)
        await self._narinfos()
        await each(listed(manifests), self._manifest)
        await each(listed(indexes), self._manifest)
        for kind in _RECORD_ORDER:
            await each(objects(self._source, f"records/{kind}"), self._record)
        await each((one async for one in objects(self._source) if _is_other(one)), self._stored)

    async def _stored(self, one: Stored) -> None:
        await self._object(one.key, one.size_bytes)

    async def _manifest(self, one: Stored) -> None:
        content = await self._source.get(one.key)
        named = None if content is None else references.of_manifest(content)
        if named is not None and await self._are_there((*named.parts, *named.manifests)):
            await self._stored(one)

    async def _record(self, one: Stored) -> None:
        content = await self._source.get(one.key)
        known = references.kind_and_key(one.key)
        if content is None or known is None:
            return
        try:
            parts = references.of_record(known[0], references.parsed(content))
        except InvalidFormat:
            self.copied.broken += 1
            return
        if await self._are_there(parts):
            await self._stored(one)

    async def _are_there(self, parts: Sequence[Part]) -> bool:
        """Whether the target has them: what was written only now is left to the next copy."""
        missing = [name for part in parts if (name := keys.blob(part.digest)) not in self._done]
        if missing and not all([await self._source.exists(name) for name in missing]):
            self.copied.broken += 1
        return not missing

    async def _narinfos(self) -> None:
        """What others refer to first, and each after its NAR."""
        names: dict[int, tuple[str, str, int]] = {}
        graph: dict[int, tuple[int, ...]] = {}

        async def read(one: Stored) -> None:
            if (narinfo := await read_narinfo(self._source, one.key)) is None:
                self.copied.broken += 1
                return
            number = hash(one.key)
            others = (hash(f"{path.hash_part}{NARINFO}") for path in narinfo.info.references)
            names[number] = one.key, narinfo.url, one.size_bytes
            graph[number] = tuple(other for other in others if other != number)

        async def publish(number: int) -> None:
            if number in names:
                name, url, size_bytes = names[number]
                if await self._object(url, None):
                    await self._object(name, size_bytes)

        await each((one async for one in objects(self._source) if is_narinfo(one)), read)
        order = TopologicalSorter(graph)
        try:
            order.prepare()
        except CycleError:  # written by nobody that we know
            await each(listed(names), publish)
            return
        while order.is_active():
            ready = order.get_ready()
            await each(listed(ready), publish)
            order.done(*ready)

    async def _object(self, name: str, size_bytes: int | None) -> bool:
        """Whether it is in the target now. `size_bytes` where it is known."""
        if name in self._done:
            return True
        there = self._sizes.get(hash(name))
        if there is not None and there == size_bytes and not name.startswith(_MOVING):
            self.copied.present += 1
            copied = there
        else:
            try:
                if size_bytes is not None and size_bytes <= _SMALL_BYTES:
                    copied = await self._copy_small(name)
                else:
                    if there is not None:  # cut off, or by somebody else
                        await asyncio.to_thread(self._look, name)  # or it is this one that is
                        await self._target.delete(name)
                    copied = await asyncio.to_thread(self._copy, name)
            except FileNotFoundError:
                return False
            except InvalidFormat as error:
                log.warning("object-not-copied", key=name, reason=error.reason)
                self.copied.broken += 1
                return False
            self.copied.objects += 1
            self.copied.bytes += copied
        self._done.add(name)
        self._advance(1, copied)
        return True

    async def _copy_small(self, name: str) -> int:
        """Like `_copy`, and replaces what is there."""
        content = await self._source.get(name)
        if content is None:
            raise FileNotFoundError(name)
        _compare(name, hashlib.sha256(content).digest())
        await self._target.put(name, content)
        return len(content)

    def _look(self, name: str) -> None:
        """Blocking. Raises like `_copy`."""
        seen = hashlib.sha256()
        for chunk in self._source.read(name, 0, None):
            seen.update(chunk)
        _compare(name, seen.digest())

    def _copy(self, name: str) -> int:
        """Blocking; the size. Raises InvalidFormat for what is not what its name says, FileNotFoundError."""
        seen, size = hashlib.sha256(), 0
        with self._target.stage() as staged:
            for chunk in self._source.read(name, 0, None):
                staged.write(chunk)
                seen.update(chunk)
                size += len(chunk)
            _compare(name, seen.digest())
            staged.publish(name)
        return size


def _compare(name: str, digest: bytes) -> None:
    blob = references.digest_of(name)
    file_hash = name.removeprefix("nar/").partition(".")[0]
    if blob is not None and blob.algorithm == "sha256":
        same = blob.hex == digest.hex()
    elif name.startswith("nar/") and len(file_hash) == _NIX_BASE32_LENGTH:
        same = file_hash == base32.encode(digest)
    else:
        return
    if not same:
        raise InvalidFormat("object", name, "its bytes have another hash than its name says")


def _is_copied(name: str) -> bool:
    return not name.startswith(_STAYS)


def _is_other(one: Stored) -> bool:
    """What nothing else names, and names nothing."""
    known = references.digest_of(one.key) is not None or references.kind_and_key(one.key) is not None
    return _is_copied(one.key) and not known and not is_of_cache(one)


def _is_listing(one: Stored) -> bool:
    return "/" not in one.key and one.key.endswith(LISTING)
