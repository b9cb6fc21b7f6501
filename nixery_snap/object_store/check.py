"""Looks at every object of a store: its bytes against its name, and what it names.

What is written, or removed by a sweep, while this goes on is no finding: whoever names something that is not there is
looked at again. `remove` of the findings takes what is broken out of the store, and what names it, so that it is made
again; nothing else.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import listing
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.object_store import keys, references
from nixery_snap.object_store.contents import BlobContent, Unpack, blob_content, check_nar, check_nar_file
from nixery_snap.object_store.marking import LISTING, NARINFO, is_narinfo, read_narinfo
from nixery_snap.object_store.references import Part
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.walking import Names, Stored, each, objects
from nixery_snap.ports import Progress

_DIFF_DIGITS: Final = 16  # of a diff_id, to be kept for every layer
_REMOVED_AT_A_TIME: Final = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """An object that is not what it should be, and why."""

    key: str
    problem: str


@dataclass(slots=True)
class Checked:
    """Objects and bytes that were looked at, by kind; findings with what names something before what it names."""

    findings: list[Finding] = field(default_factory=list)
    objects: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)


class _Check:
    def __init__(self, store: ObjectStore, unpack: Unpack, progress: Progress) -> None:
        self.checked = Checked()
        self._store = store
        self._unpack = unpack
        self._progress = progress
        self._found: list[tuple[int, Finding]] = []
        self._passes = 0  # each looks at what names something that one before looked at
        # Of blobs, by number as in Names.
        self._sizes: dict[int, int] = {}
        self._diffs: dict[int, int] = {}
        self._bad = Names()
        self._bad_paths: set[str] = set()  # hash parts of which the binary cache had something broken
        self._narinfos = Names()

    async def run(self) -> None:
        manifests: list[str] = []
        indexes: list[str] = []

        async def blob(one: Stored) -> None:
            if (found := await self._blob(one)) is not None and (named := found.named) is not None:
                (indexes if named.manifests else manifests).append(one.key)

        await self._pass("NARs and narinfos", "narinfo", self._narinfo_objects(), self._narinfo)
        await self._pass("NARs and narinfos", "nar", objects(self._store, "nar"), self._nar)
        await self._pass("listings", "listing", self._listings(), self._listing)
        await self._pass("blobs", "blob", objects(self._store, "blobs"), blob)
        for some, kind in ((manifests, "manifest"), (indexes, "index")):
            self._progress(f"looking at what {len(some)} manifests name")
            self._passes += 1
            await each(_all(some), self._manifest)
            self.checked.objects[kind] += len(some)
        for kind in references.KINDS:
            prefix = f"records/{kind}"
            await self._pass(f"{kind} records", f"{kind} record", objects(self._store, prefix), self._record)
        await self._pass("pins", "pin", objects(self._store, "pins"), self._pin)
        # Whoever removes in this order never leaves something that names what is gone.
        self._found.sort(key=lambda found: (found[1].key.startswith("nar/"), -found[0], found[1].key))
        self.checked.findings = [finding for _, finding in self._found]

    async def _pass(
        self, what: str, kind: str, items: AsyncIterator[Stored], look: Callable[[Stored], Awaitable[object]]
    ) -> None:
        self._progress(f"looking at {what}")
        self._passes += 1

        async def counted(one: Stored) -> None:
            await look(one)
            self.checked.objects[kind] += 1
            self.checked.bytes[kind] += one.size_bytes

        await each(items, counted)

    def _find(self, key: str, problem: str) -> None:
        self._bad.add(key)
        self._found.append((self._passes, Finding(key, problem)))

    # --- the binary cache ---------------------------------------------------------------------------

    async def _narinfo_objects(self) -> AsyncIterator[Stored]:
        async for one in objects(self._store):
            if is_narinfo(one):
                yield one

    async def _listings(self) -> AsyncIterator[Stored]:
        async for one in objects(self._store):
            if one.key.endswith(LISTING) and "/" not in one.key:
                yield one

    async def _narinfo(self, one: Stored) -> None:
        content = await self._store.get(one.key)
        if content is None:
            return
        hash_part = one.key.removesuffix(NARINFO)
        try:
            narinfo = NarInfo.parse(content)
            if narinfo.info.path.hash_part != hash_part:
                raise InvalidFormat("narinfo", one.key, f"it is of {narinfo.info.path}")
        except InvalidFormat as error:
            self._find(one.key, error.reason)
            self._bad_paths.add(hash_part)
            return
        self._narinfos.add(one.key)
        problem = ""
        try:
            await asyncio.to_thread(check_nar, self._store, narinfo, self._unpack)
            self._narinfos.add(narinfo.url)
        except FileNotFoundError:
            problem = f"{narinfo.url} is missing"
        except InvalidFormat as error:  # whose fault it is, the file's own name tells: others may need it
            problem = f"{narinfo.url}: {error.reason}"
        if problem and await self._store.get(one.key) == content:
            self._find(one.key, problem)
            self._bad_paths.add(hash_part)

    async def _nar(self, one: Stored) -> None:
        if one.key in self._narinfos:
            return
        try:
            await asyncio.to_thread(check_nar_file, self._store, one.key)
        except InvalidFormat as error:
            self._find(one.key, error.reason)
        except FileNotFoundError:
            return

    async def _listing(self, one: Stored) -> None:
        content = await self._store.get(one.key)
        try:
            if content is not None:
                await asyncio.to_thread(listing.parse, content)
        except InvalidFormat as error:
            self._find(one.key, error.reason)

    # --- images -------------------------------------------------------------------------------------

    async def _blob(self, one: Stored) -> BlobContent | None:
        digest = references.digest_of(one.key)
        if digest is None:
            return None
        try:
            found = await asyncio.to_thread(blob_content, self._store, one.key, digest, self._unpack)
        except InvalidFormat as error:
            self._find(one.key, error.reason)
            return None
        except FileNotFoundError:
            return None
        number = hash(one.key)
        self._sizes[number] = found.size_bytes
        if found.diff_id:
            self._diffs[number] = _short(found.diff_id)
        return found

    async def _manifest(self, name: str) -> None:
        content = await self._store.get(name)
        named = None if content is None else references.of_manifest(content)
        if named is None:
            return
        problems = await self._problems_of_parts((*named.parts, *named.manifests))
        problems += await self._problems_of_paths(named.paths)
        if named.parts and not problems:
            problems += await self._problems_of_config(named.parts)
        await self._judge(name, problems)

    async def _problems_of_config(self, parts: Sequence[Part]) -> list[str]:
        config, *layers = parts
        content = await self._store.get(keys.blob(config.digest))
        try:
            diff_ids = json.loads(content or b"")["rootfs"]["diff_ids"]
            if len(diff_ids) != len(layers):
                return [f"its config has {len(diff_ids)} diff_ids for {len(layers)} layers"]
            return [
                f"the config's diff_id of {layer.digest} is not that of its content"
                for layer, diff_id in zip(layers, diff_ids, strict=True)
                if _short(diff_id) != self._diffs.get(hash(keys.blob(layer.digest)), _short(diff_id))
            ]
        except (ValueError, LookupError, TypeError, AttributeError):
            return ["its config is no image config"]

    async def _problems_of_parts(self, parts: Sequence[Part]) -> list[str]:
        problems = []
        for part in parts:
            name = keys.blob(part.digest)
            size = self._sizes.get(hash(name))
            if name in self._bad:
                problems.append(f"{part.digest} is broken")
            elif size is None and (stored := await self._store.head(name)) is not None:
                size = stored[0]  # written since
            if size is None:
                if name not in self._bad:
                    problems.append(f"{part.digest} is missing")
            elif part.size_bytes not in {None, size} or part.end > size:
                problems.append(f"{part.digest} has {size} bytes, not {part.size_bytes or part.end}")
        return problems

    async def _problems_of_paths(self, paths: Sequence[StorePath]) -> list[str]:
        """Other paths than closure-infos may be in another binary cache."""
        named, problems = list(paths), []
        for path in paths:
            if path.name == references.CLOSURE_INFO and path.hash_part not in self._bad_paths:
                narinfo = await read_narinfo(self._store, f"{path.hash_part}{NARINFO}")
                if narinfo is None:
                    problems.append(f"it names {path}, which the binary cache lacks")
                else:
                    named += narinfo.info.references
        broken = {path for path in named if path.hash_part in self._bad_paths}
        return problems + [f"{path} is broken in the binary cache" for path in sorted(broken)]

    # --- records ------------------------------------------------------------------------------------

    async def _record(self, one: Stored) -> None:
        if (known := references.kind_and_key(one.key)) is None:
            return
        content = await self._store.get(one.key)
        if content is None:
            return
        kind, key = known
        value = references.parsed(content)
        if value is None:
            self._find(one.key, "it is no JSON")
            return
        try:
            problems = await self._problems_of_parts(references.of_record(kind, value))
            if kind == "image":
                references.of_image(value)
            if kind == "recipe" and _layer_of(value) != key:
                problems.append("it is for another layer")
        except InvalidFormat as error:
            problems = [error.reason]
        await self._judge(one.key, problems)

    async def _judge(self, name: str, problems: Sequence[str]) -> None:
        if problems and await self._store.exists(name):
            self._find(name, "; ".join(problems))

    async def _pin(self, one: Stored) -> None:
        content = await self._store.get(one.key)
        if content is not None and not isinstance(references.parsed(content), dict):
            self._find(one.key, "it is no JSON object")


async def check(store: ObjectStore, unpack: Unpack, progress: Progress) -> Checked:
    """Raises StorageError."""
    one = _Check(store, unpack, progress)
    await one.run()
    return one.checked


async def remove(store: ObjectStore, findings: Sequence[Finding]) -> None:
    """What was found, in the order in which it was given by `check`. Raises StorageError."""
    for begin in range(0, len(findings), _REMOVED_AT_A_TIME):
        for finding in findings[begin : begin + _REMOVED_AT_A_TIME]:
            await store.delete(finding.key)


def _short(diff_id: str) -> int:
    return int(diff_id.partition(":")[2][:_DIFF_DIGITS], 16)


def _layer_of(recipe: Any) -> str | None:
    try:
        return str(recipe["layer"]["digest"]).partition(":")[2]
    except (LookupError, TypeError):
        return None


async def _all(names: Sequence[str]) -> AsyncIterator[str]:
    for name in names:
        yield name
