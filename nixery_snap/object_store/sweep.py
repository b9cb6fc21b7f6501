"""Garbage collection: what nobody asked for in a long time is removed, but nothing that something kept names.

Marking begins with images, manifests, indexes and paths of our binary cache that were used or made lately, and
follows what they name. It is done twice, the second time while servers write down uses before they answer
(`sweeps`), and only adds: what was made meanwhile is too young to be removed. Then what names something is removed
before it, so that at every moment the rest is consistent.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

from nixery_snap.errors import InvalidFormat, StorageError
from nixery_snap.object_store import keys, references
from nixery_snap.object_store.contents import named_by
from nixery_snap.object_store.marking import (
    NARINFO,
    Marking,
    Since,
    is_narinfo,
    is_of_cache,
    read_narinfo,
    read_record,
)
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweeps import State, announced
from nixery_snap.object_store.walking import Names, Stored, each, objects
from nixery_snap.ports import Progress

_DELETED: Final = 1000  # objects in one request, as S3 has it
_NAMING: Final = ("name", *references.LAYER_KINDS)  # kept as long as what they name
_LEFT_BEHIND: Final = re.compile("#[0-9]+$")
_LEFT_SECONDS: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Rules:
    """`unused_seconds` after its last use something is removed, and `grace_seconds` after it was found unused.

    Uses are known to `imprecision_seconds`. For what servers and sweeps agree on in `pace_seconds` see `sweeps`.
    """

    unused_seconds: float
    grace_seconds: float
    imprecision_seconds: float
    pace_seconds: float


@dataclass(slots=True)
class Report:
    """Objects and bytes by their kind; `too_early_seconds`: until so much later nobody knows what is unused."""

    too_early_seconds: float = 0
    kept: Counter[str] = field(default_factory=Counter)
    kept_bytes: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    removed_bytes: Counter[str] = field(default_factory=Counter)


Remove = Callable[[Sequence[Stored]], Awaitable[None]]


class _Sweep:
    """`now` is the store's time at which it began."""

    def __init__(self, store: ObjectStore, rules: Rules, now: float, progress: Progress) -> None:
        made = now - rules.unused_seconds
        self._store = store
        self._now = now
        self._since = Since(made - rules.imprecision_seconds, made, now - rules.grace_seconds)
        self._marking = Marking(store, self._since, progress)
        self._progress = progress
        self.report = Report()

    async def may_begin(self) -> bool:
        """Whether uses have been written down for long enough."""
        begun = await _modified(self._store, keys.USAGE_BEGIN)
        if begun is None:  # no server of this store writes them down
            begun = self._now
        self.report.too_early_seconds = max(0.0, begun - self._since.used)
        return begun <= self._since.used

    async def mark(self) -> None:
        await self._marking.mark()

    async def sweep(self, remove: Remove) -> None:
        """Give `remove` all that is to go, in an order in which it can: first what names something."""
        self._progress("removing")
        await self._pass("name", keys.IMAGE_NAMES, remove)
        await self._pass("image", "records/image", remove)
        manifests: list[Stored] = []
        indexes: list[Stored] = []

        async def look(one: Stored) -> None:
            if (named := await named_by(self._store, one)) is not None:
                (indexes if named.manifests else manifests).append(one)

        await each((one async for one in objects(self._store, "blobs") if self._is_dead(one)), look)
        await self._remove("blob", indexes, remove)
        await self._remove("blob", manifests, remove)
        gone = Names()  # lists may still have them
        for one in (*indexes, *manifests):
            gone.add(one.key)
        for kind in ("index", *references.LAYER_KINDS, "recipe", "index-part", *references.MEMO_KINDS):
            await self._pass(kind, f"records/{kind}", remove)
        await self._pass("blob", "blobs", remove, gone)
        narinfos = await self._dead_narinfos()
        await self._remove("narinfo", narinfos, remove)
        for one in narinfos:
            gone.add(one.key)
        await self._pass("cache", "", remove, gone)
        await self._pass("pin", "pins", remove)
        await self._pass("journal", keys.USAGE, remove)
        await self._pass("lease", keys.LEASES, remove)

    async def _pass(self, kind: str, prefix: str, remove: Remove, gone: Container[str] = frozenset()) -> None:
        dead: list[Stored] = []

        async def look(one: Stored) -> None:
            if one.key in gone or (kind == "cache" and not is_of_cache(one)):
                return
            if self._is_dead(one) and not (kind in _NAMING and await self._names_live(one)):
                dead.append(one)
                if len(dead) >= _DELETED:
                    some = dead[:]
                    dead.clear()
                    await self._remove(kind, some, remove)
            else:
                self.report.kept[kind] += 1
                self.report.kept_bytes[kind] += one.size_bytes

        await each(objects(self._store, prefix), look)
        await self._remove(kind, dead, remove)

    async def _remove(self, kind: str, dead: Sequence[Stored], remove: Remove) -> None:
        for begin in range(0, len(dead), _DELETED):
            some = dead[begin : begin + _DELETED]
            await remove(some)
            self.report.removed[kind] += len(some)
            self.report.removed_bytes[kind] += sum(one.size_bytes for one in some)

    def _is_dead(self, one: Stored) -> bool:
        if one.key in self._marking.live or one.key == keys.USAGE_BEGIN or one.modified >= self._since.young:
            return False
        match one.key.partition("/")[0]:
            case "blobs":
                return references.digest_of(one.key) is not None
            case "records":
                known = references.kind_and_key(one.key)
                if known is None:  # of another version of this program
                    return False
                return known[0] not in references.MEMO_KINDS or one.modified < self._since.made
            case keys.IMAGE_NAMES:
                return True
            case "pins" | keys.LEASES:  # whoever lives renews his lease
                return one.modified < self._since.made
            case keys.USAGE:
                return one.modified < self._since.used
            case _:
                return is_of_cache(one)

    async def _names_live(self, one: Stored) -> bool:
        """Of a layer's or member's record, or an image's name. One that cannot be read is of no use to anybody."""
        if one.key.startswith(f"{keys.IMAGE_NAMES}/"):
            image = (await self._store.get(one.key) or b"").decode(errors="replace")
            return keys.record("image", image) in self._marking.live
        known, value = references.kind_and_key(one.key), await read_record(self._store, one.key)
        try:
            return known is not None and any(
                keys.blob(part.digest) in self._marking.live for part in references.of_record(known[0], value)
            )
        except InvalidFormat:
            return False

    async def _dead_narinfos(self) -> list[Stored]:
        """What refers to others first: a path is never there without its closure."""
        dead: dict[int, Stored] = {}
        graph: dict[int, tuple[int, ...]] = {}

        async def look(one: Stored) -> None:
            narinfo = await read_narinfo(self._store, one.key)
            number, paths = hash(one.key), () if narinfo is None else narinfo.info.references
            others = (hash(f"{path.hash_part}{NARINFO}") for path in paths)
            dead[number], graph[number] = one, tuple(other for other in others if other != number)

        await each(
            (one async for one in objects(self._store) if is_narinfo(one) and self._is_dead(one)), look
        )
        try:
            order = [number for number in TopologicalSorter(graph).static_order() if number in dead]
        except CycleError:  # written by nobody that we know
            order = list(dead)
        return [dead[number] for number in reversed(order)]


# --- the whole --------------------------------------------------------------------------------------


async def plan(store: ObjectStore, rules: Rules, progress: Progress) -> Report:
    """What `collect` would remove now. Raises StorageError."""
    sweep = _Sweep(store, rules, time.time(), progress)

    async def leave(some: Sequence[Stored]) -> None:
        return

    if await sweep.may_begin():
        await sweep.mark()
        await sweep.sweep(leave)
    return sweep.report


async def collect(store: ObjectStore, rules: Rules, progress: Progress) -> Report:
    """Mark, wait, mark again and remove. Raises StorageError; what was removed until then stays removed."""
    sweep = _Sweep(store, rules, await _now(store), progress)
    if not await sweep.may_begin():
        return sweep.report
    await sweep.mark()
    progress(f"waiting {rules.grace_seconds:.0f} s for what is being made or fetched")
    await asyncio.sleep(rules.grace_seconds)
    async with announced(store, rules.pace_seconds) as hold:
        await hold.wait_for_servers()
        await hold.enter(State.SWEEPING)

        async def remove(some: Sequence[Stored]) -> None:
            hold.check()
            await store.delete_many([one.key for one in some])

        await sweep.mark()
        await sweep.sweep(remove)
    if store.root is not None:
        await asyncio.to_thread(_remove_left_behind, store.root)
    return sweep.report


async def last_sweep(store: ObjectStore) -> float | None:
    """When one was begun or ended last, by the store's clock."""
    return await _modified(store, keys.SWEEP)


async def _now(store: ObjectStore) -> float:
    """By the store's clock, which says when its objects were written."""
    name = f"{keys.USAGE}/now-{secrets.token_hex(8)}"
    await store.put_if_absent(name, b"")
    try:
        now = await _modified(store, name)
    finally:
        await store.delete(name)
    if now is None:
        raise StorageError("what was just written is not there")
    return now


async def _modified(store: ObjectStore, name: str) -> float | None:
    found = await store.head(name)
    return None if found is None else found[1]


def _remove_left_behind(root: Path) -> None:
    """Blocking: what obstore was writing when a process was killed, beside the object that it was to be."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if _LEFT_BEHIND.search(name):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < time.time() - _LEFT_SECONDS:
                        path.unlink()
