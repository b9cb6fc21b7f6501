"""Answers from the index of the revision; Nix is asked only what that does not tell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from nixery_snap.errors import BlobNotFound, NixMissing, PackageProblem, ProblemKind, StorageError
from nixery_snap.evaluation.index import Absent, AttributeIndex, Entry, Indexes
from nixery_snap.evaluation.search import Catalogues
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import Evaluator, Package, PackageSet

log = structlog.get_logger()


class Indexed:
    """Implements the port Evaluator around another one. A package set without a pin is always left to that."""

    def __init__(self, evaluator: Evaluator, indexes: Indexes, catalogues: Catalogues) -> None:
        self._evaluator = evaluator
        self._indexes = indexes
        self._catalogues = catalogues

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        pin = package_set.pin
        index = await self._indexes.open(pin, system) if pin else None
        if index is None:
            return await self._evaluator.evaluate(package_set, system, names)
        try:
            found = [await index.find(name) for name in names]
        except (BlobNotFound, StorageError) as error:
            log.warning("index-damaged", revision=pin.revision if pin else None, reason=str(error))
            return await self._evaluator.evaluate(package_set, system, names)
        unknown = [name for name, one in zip(names, found, strict=True) if not _settles(one)]
        asked: dict[AttributePath, Package | PackageProblem] = {}
        if unknown:
            try:
                results = await self._evaluator.evaluate(package_set, system, unknown)
                asked = dict(zip(unknown, results, strict=True))
            except NixMissing:
                log.debug("index-only", names=[str(name) for name in unknown])
        return [
            asked[name] if name in asked else await self._result(index, name, one)
            for name, one in zip(names, found, strict=True)
        ]

    async def _result(
        self, index: AttributeIndex, name: AttributePath, found: Entry | Absent | None
    ) -> Package | PackageProblem:
        if isinstance(found, Absent):
            where = f"in {AttributePath(found.path)}" if found.path else "in the package set"
            message = f"there is no package {found.name} {where}"
            suggestions = await self._near(index, found.name, found.path)
            return PackageProblem(str(name), ProblemKind.MISSING, message, suggestions)
        if found is None:
            message = "it is not in the index of this revision, and without Nix this server knows no more"
            suggestions = await self._near(index, name.parts[-1], name.parts[:-1])
            return PackageProblem(str(name), ProblemKind.MISSING, message, suggestions)
        return (
            replace(found.result, name=str(name))
            if isinstance(found.result, PackageProblem)
            else found.result
        )

    async def _near(self, index: AttributeIndex, name: str, path: tuple[str, ...]) -> tuple[str, ...]:
        try:
            catalogue = await self._catalogues.open(index)
        except (BlobNotFound, StorageError) as error:
            log.warning("index-damaged", reason=str(error))
            return ()
        return await asyncio.to_thread(catalogue.near, name, path)


def _settles(found: Entry | Absent | None) -> bool:
    """Whether Nix would say the same. What failed may have failed for that once: no time, no memory."""
    if isinstance(found, Entry) and isinstance(found.result, PackageProblem):
        return found.result.kind is not ProblemKind.FAILED
    return found is not None
