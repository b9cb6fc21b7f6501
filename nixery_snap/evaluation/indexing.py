"""Makes the index of a package set: finds its attributes, then evaluates them a few at a time.

A set is searched level by level, as `nix-env -qa` does: its attributes, and those of the sets in it that say
recurseForDerivations. What is done is recorded piece by piece, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import structlog

from nixery_snap.errors import (
    EvaluationFailed,
    EvaluationTimedOut,
    EvaluationTooBig,
    InvalidFormat,
    PackageProblem,
    ProblemKind,
)
from nixery_snap.evaluation.index import (
    INDEX_RECORD,
    AttributeIndex,
    Entry,
    Indexes,
    Levels,
    Path,
    entries_of,
    index_key,
    pack,
    pack_entries,
    record_key,
    sort_key,
)
from nixery_snap.evaluation.question import Question
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.ground import ground_error
from nixery_snap.nix.log_events import LogReader
from nixery_snap.oci import canonical_json
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import BlobStore, Evaluator, NixRunner, Package, PackageSet, Records

log = structlog.get_logger()

T = TypeVar("T")
Advance = Callable[[int, int], object]
"""Takes how many attributes are done, and of how many."""

PART_RECORD: Final = "index-part"
_QUESTION_BYTES: Final = 64 * 1024  # Linux passes no argument longer than 128 KiB
_LOOKED_AT: Final = 512  # attributes per process that only looks
_MAX_ATTRIBUTES: Final = 2_000_000  # several times nixpkgs; sets can contain themselves
MAX_DEPTH: Final = 8  # of attributes; nixpkgs needs four
_MAX_DESCRIPTION: Final = 300  # characters


@dataclass(frozen=True, slots=True)
class _Seen:
    """An attribute before it is evaluated.

    `below`: of a set to be searched the names in it, else None. Looking at what `is_deadly` ended Nix.
    """

    path: Path
    outputs: tuple[str, ...] = ()
    description: str = ""
    below: tuple[str, ...] | None = None
    is_deadly: bool = False

    @property
    def names(self) -> list[Path]:
        """What is asked of the evaluator: the attribute, and each output by its name."""
        return [self.path, *((*self.path, output) for output in self.outputs)]


class Indexer:
    """Makes indexes. `processes` pieces of `attributes` are evaluated at a time, which bounds the memory it takes."""

    def __init__(
        self,
        nix: NixRunner,
        evaluator: Evaluator,
        blobs: BlobStore,
        records: Records,
        *,
        timeout_seconds: float,
        memory_mib: int,
        processes: int,
        attributes: int = 128,
    ) -> None:
        self._nix = nix
        self._evaluator = evaluator
        self._blobs = blobs
        self._records = records
        self._indexes = Indexes(blobs, records)
        self._timeout_seconds = timeout_seconds
        self._memory_mib = memory_mib
        self._processes = asyncio.Semaphore(processes)
        self._attributes = attributes

    async def index(
        self, package_set: PackageSet, system: str, advance: Advance = lambda done, total: None
    ) -> AttributeIndex:
        """The index of `package_set`, which has a pin: from the store, or made now.

        Raises what evaluating does when the set as a whole is at fault, and StorageError.
        """
        pin = package_set.pin
        if pin is None:
            raise ValueError("what is no checkout of a pin cannot be remembered")
        if index := await self._indexes.open(pin, system):
            return index
        asked = await Question.about(package_set, system, self._nix)
        job = _Job(index_key(pin, system), package_set, system, asked)
        levels = [level async for level in self._search(job)]
        total, done = sum(map(len, levels)), 0
        advance(done, total)

        async def evaluated(seen: Sequence[_Seen]) -> tuple[str, str]:
            nonlocal done
            part = await self._part(job, seen)
            done += len(seen)
            advance(done, total)
            return sort_key(seen[0].path), part

        pieces = [list(_pieces(level, self._attributes)) for level in levels]
        parts = iter(await _together(evaluated(seen) for level in pieces for seen in level))
        table = [[next(parts) for _ in level] for level in pieces]
        record = {"levels": table, **await self._summary(table, levels)}
        record = await self._records.put(INDEX_RECORD, job.key, record)
        log.info("indexed", revision=pin.revision, system=system, **record["counts"])
        return AttributeIndex(job.key, record, self._indexes)

    # --- which attributes there are

    async def _search(self, job: _Job) -> AsyncIterator[list[_Seen]]:
        """Each level of the set, sorted."""
        [root] = await self._look(job, [()])
        if root.below is None:
            # Evaluating says what is wrong with the set.
            await self._evaluator.evaluate(job.package_set, job.system, [])
            raise EvaluationFailed("its attributes cannot be listed")
        sets, count, depth = [root], 0, 0
        while paths := sorted(
            (path for one in sets for path in _below(one)), key=lambda path: (sort_key(path), path)
        ):
            count += len(paths)
            if count > _MAX_ATTRIBUTES:
                raise EvaluationFailed(f"it has more than {_MAX_ATTRIBUTES} attributes")
            chunks = _chunks(paths, _LOOKED_AT)
            level = [seen for some in await _together(self._looked(job, c) for c in chunks) for seen in some]
            depth += 1
            if depth == MAX_DEPTH:
                level = [replace(seen, below=None) for seen in level]
            yield level
            sets = [seen for seen in level if seen.below is not None]

    async def _looked(self, job: _Job, paths: Sequence[Path]) -> list[_Seen]:
        async with self._processes:
            return await self._look(job, paths)

    async def _look(self, job: _Job, paths: Sequence[Path]) -> list[_Seen]:
        """What index.nix says; of what ends its process, nothing."""
        finished = await self._ask(job, paths)
        if finished is not None:
            return [_seen(path, said) for path, said in zip(paths, finished, strict=True)]
        if len(paths) == 1:
            return [_Seen(paths[0], is_deadly=True)]
        half = len(paths) // 2
        return [*await self._look(job, paths[:half]), *await self._look(job, paths[half:])]

    async def _ask(self, job: _Job, paths: Sequence[Path]) -> list[dict[str, Any]] | None:
        """What index.nix answers; None where it did not come to its end. Raises what has nothing to do with `paths`."""
        said = LogReader()
        try:
            finished = await self._nix.run(
                "nix-instantiate",
                *("--eval", "--strict", "--json", "--read-write-mode", *job.asked.options),
                *("--argstr", "set", job.asked.data),
                *("--argstr", "request", json.dumps({"paths": paths})),
                *("--expr", f"{{ set, request }}: {job.asked.expression('index.nix')} set request"),
                timeout_seconds=self._timeout_seconds,
                on_stderr=said.feed,
                memory_bytes=self._memory_mib * 1024 * 1024,
            )
        except TimeoutError:
            return None
        if finished.returncode != 0:
            if error := ground_error("\n".join((*said.errors, *said.plain))):
                raise error
            return None  # why, is said when they are evaluated
        # Names in a package set need not be text.
        answer: list[dict[str, Any]] = json.loads(finished.stdout.decode(errors="replace"))
        return answer

    # --- what they evaluate to

    async def _part(self, job: _Job, seen: Sequence[_Seen]) -> str:
        """The digest of the blob that has the entries of `seen`, made now unless it is there."""
        key = record_key(job.key, [one.names for one in seen])
        record = await self._records.get(PART_RECORD, key)
        if record and await self._blobs.has(Digest.parse(record["blob"])):
            return str(record["blob"])
        whole = {one.path for one in seen if one.below is not None}
        together = [path for one in seen if not one.is_deadly for path in one.names]
        alone = [[one.path] for one in seen if one.is_deadly]
        entries = []
        async with self._processes:
            for paths in (*_chunks(together, len(together)), *alone):
                results = await self._evaluate(job, paths)
                entries += [
                    Entry(path, result, path in whole) for path, result in zip(paths, results, strict=True)
                ]
        digest = str(await self._blobs.put(await asyncio.to_thread(pack_entries, entries)))
        await self._records.put(PART_RECORD, key, {"blob": digest})
        return digest

    async def _evaluate(self, job: _Job, paths: Sequence[Path]) -> list[Package | PackageProblem]:
        """One result for each of `paths`; what takes too long together is evaluated apart."""
        names = [AttributePath(path) for path in paths]
        try:
            return list(await self._evaluator.evaluate(job.package_set, job.system, names))
        except (EvaluationTimedOut, EvaluationTooBig) as error:
            if len(names) == 1:
                return [PackageProblem(str(names[0]), ProblemKind.FAILED, str(error))]
        half = len(paths) // 2
        return [*await self._evaluate(job, paths[:half]), *await self._evaluate(job, paths[half:])]

    async def _summary(self, table: Levels, levels: Iterable[Iterable[_Seen]]) -> dict[str, Any]:
        """What can be searched, as the digest of a blob of its own, and how many there are of what."""
        descriptions = {one.path: one.description for level in levels for one in level}
        counts: Counter[str] = Counter()
        catalogue = []
        async for entry in entries_of(table, self._indexes):
            if entry.path not in descriptions:
                continue  # an output
            match entry.result:
                case Package() as package:
                    counts["packages"] += 1
                    facts = (package.name, package.main_program, descriptions[entry.path])
                    catalogue.append(canonical_json.encode([entry.path, *facts]))
                case PackageProblem(kind=kind):
                    counts["sets" if entry.is_whole else str(kind)] += 1
        return {
            "catalogue": str(await self._blobs.put(await asyncio.to_thread(pack, catalogue))),
            "counts": dict(sorted(counts.items())),
        }


@dataclass(frozen=True, slots=True)
class _Job:
    key: str
    package_set: PackageSet
    system: str
    asked: Question


def _seen(path: Path, said: Mapping[str, Any]) -> _Seen:
    if (names := said.get("names")) is not None:
        return _Seen(path, below=tuple(names))
    outputs = tuple(output for output in said.get("outputs", ()) if _can_be_asked_for((*path, output)))
    description = " ".join(said.get("description", "").split())[:_MAX_DESCRIPTION]
    return _Seen(path, tuple(dict.fromkeys(outputs)), description)


def _below(one: _Seen) -> Iterator[Path]:
    return (path for name in one.below or () if _can_be_asked_for(path := (*one.path, name)))


def _can_be_asked_for(path: Path) -> bool:
    """Nix allows any text for a name; people cannot write all of it."""
    if "\ufffd" in path[-1]:
        return False
    name = AttributePath(path)
    try:
        return AttributePath.parse(str(name)) == name
    except InvalidFormat:
        return False


def _chunks(paths: Sequence[Path], count: int) -> Iterator[list[Path]]:
    """At most `count` at a time, and few enough for an argument of a program."""
    chunk: list[Path] = []
    size_bytes = 0
    for path in paths:
        own = len(json.dumps(path))
        if chunk and (len(chunk) == count or size_bytes + own > _QUESTION_BYTES):
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(path)
        size_bytes += own
    if chunk:
        yield chunk


def _pieces(level: Sequence[_Seen], count: int) -> Iterator[list[_Seen]]:
    """`count` at a time, or more: a lookup needs all with one sort key together."""
    piece: list[_Seen] = []
    for seen in level:
        if len(piece) >= count and sort_key(piece[-1].path) != sort_key(seen.path):
            yield piece
            piece = []
        piece.append(seen)
    if piece:
        yield piece


async def _together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order; when one fails, the others are ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
