"""What of a store must stay: what was used or made lately, and all that it names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.object_store import keys, references
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.walking import Names, Stored, each, listed, objects
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import Progress, UseKind

log = structlog.get_logger()

NARINFO: Final = ".narinfo"
LISTING: Final = ".ls"
_HASH_PART_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class Since:
    """Times by the store's clock: what was `used` or `made` before may go, unless it is so `young` that whoever wrote
    it may not be done.
    """

    used: float
    made: float
    young: float


class Marking:
    """`live` are the names of objects that stay; they only become more."""

    def __init__(self, store: ObjectStore, since: Since, progress: Progress) -> None:
        self.live = Names()
        self._store = store
        self._since = since
        self._progress = progress
        self._narinfos = Names()
        self._files = Names()  # NARs that were asked for
        self._paths: list[str] = []  # hash parts of kept paths that are to be followed

    async def mark(self) -> None:
        """Everything that must stay; again, what must stay now too."""
        async for one in objects(self._store):
            if is_narinfo(one):
                self._narinfos.add(one.key)
                if one.modified >= self._since.made:
                    self._follow(one.key.removesuffix(NARINFO))
        self._progress("reading what was used")
        await each(listed(await self._uses()), self._used)
        self._progress("following images")
        await each(self._recent("records/image", self._since.made), lambda one: self._image(one.key))
        for kind in references.INDEX_KINDS:
            await each(self._recent(f"records/{kind}", self._since.made), lambda one: self._record(one.key))
        for kind in references.LAYER_KINDS:
            await each(self._recent(f"records/{kind}", self._since.young), lambda one: self._record(one.key))
        self._progress("following store paths")
        if self._files:
            await each((one async for one in objects(self._store) if is_narinfo(one)), self._used_file)
        while self._paths:
            wanted, self._paths = self._paths, []
            await each(listed(wanted), self._path)

    async def _uses(self) -> set[str]:
        uses: set[str] = set()

        async def journal(one: Stored) -> None:
            content = await self._store.get(one.key)
            uses.update((content or b"").decode(errors="replace").split())

        await each(self._recent(keys.USAGE, self._since.used), journal)
        return uses

    async def _used(self, use: str) -> None:
        kind, _, key = use.partition(":")
        match kind:
            case UseKind.IMAGE:
                await self._image(keys.record("image", key))
            case UseKind.MANIFEST:
                await self._manifest(key)
            case UseKind.INDEX:
                await self._record(keys.record("index", key))
            case UseKind.PATH:
                self._follow(key)
            case UseKind.FILE:
                self._files.add(f"nar/{key}")
                self._follow(key[:_HASH_PART_LENGTH])  # so begins what was read through, before it was kept

    async def _used_file(self, one: Stored) -> None:
        """Clients remember narinfos for weeks, and then ask for NARs alone."""
        narinfo = await read_narinfo(self._store, one.key)
        if narinfo is not None and narinfo.url in self._files:
            self._follow(narinfo.info.path.hash_part)

    def _follow(self, hash_part: str) -> None:
        name = f"{hash_part}{NARINFO}"
        if name in self._narinfos and self.live.add(name):
            self._paths.append(hash_part)

    async def _image(self, name: str) -> None:
        if not self.live.add(name):
            return
        if (value := await read_record(self._store, name)) is not None:
            try:
                for path in references.of_image(value):
                    self._follow(path.hash_part)
                for part in references.of_record("image", value):
                    await self._manifest(str(part.digest))
            except InvalidFormat as error:
                log.warning("record-damaged", record=name, reason=str(error))

    async def _manifest(self, digest: str) -> None:
        try:
            name = keys.blob(Digest.parse(digest))
        except InvalidFormat:
            return
        if not self.live.add(name):
            return
        content = await self._store.get(name)
        named = references.of_manifest(content) if content is not None else None
        if named is None:
            return
        for path in named.paths:
            self._follow(path.hash_part)
        for part in named.parts:
            self._blob(part.digest)
        for part in named.manifests:
            await self._manifest(str(part.digest))

    def _blob(self, digest: Digest) -> None:
        self.live.add(keys.blob(digest))
        self.live.add(keys.record("recipe", digest.hex))

    async def _record(self, name: str) -> None:
        """One that is kept, with the blobs that it names."""
        if (known := references.kind_and_key(name)) is None or not self.live.add(name):
            return
        if (value := await read_record(self._store, name)) is not None:
            with suppress(InvalidFormat):  # damaged: it keeps nothing
                for part in references.of_record(known[0], value):
                    self._blob(part.digest)

    async def _path(self, hash_part: str) -> None:
        self.live.add(f"{hash_part}{LISTING}")
        if (narinfo := await read_narinfo(self._store, f"{hash_part}{NARINFO}")) is not None:
            self.live.add(narinfo.url)
            if narinfo.info.deriver is not None:
                self.live.add(f"log/{narinfo.info.deriver.base_name}")
            for path in narinfo.info.references:
                self._follow(path.hash_part)

    def _recent(self, prefix: str, since: float) -> AsyncIterator[Stored]:
        return (one async for one in objects(self._store, prefix) if one.modified >= since)


async def read_record(store: ObjectStore, name: str) -> Any | None:
    content = await store.get(name)
    return None if content is None else references.parsed(content)


async def read_narinfo(store: ObjectStore, name: str) -> NarInfo | None:
    content = await store.get(name)
    try:
        return None if content is None else NarInfo.parse(content)
    except InvalidFormat as error:
        log.warning("narinfo-damaged", narinfo=name, reason=error.reason)
        return None


def is_narinfo(one: Stored) -> bool:
    return one.key.endswith(NARINFO) and "/" not in one.key


def is_of_cache(one: Stored) -> bool:
    return one.key.startswith(("nar/", "log/")) or (
        "/" not in one.key and one.key.endswith((NARINFO, LISTING))
    )
