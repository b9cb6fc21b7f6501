"""How many packages of an index depend on each, whatever for: to build them, to run them or through others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Final

from nixery_snap.errors import PathsMissing
from nixery_snap.evaluation.index import AttributeIndex
from nixery_snap.nix.drv_name import without_version
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import Evaluator, Package, PackageSet, PathInfoSource

_DRV: Final = ".drv"
_ASKED_TOGETHER: Final = 512
_COUNTED_TOGETHER: Final = 4096  # packages, one bit each for every derivation

Graph = Mapping[StorePath, Collection[StorePath]]
"""Derivations, and those that they are built from."""


async def popularity(
    index: AttributeIndex,
    path_infos: PathInfoSource,
    evaluator: Evaluator,
    package_set: PackageSet,
    system: str,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, int]:
    """By name without version. `path_infos` knows the store; derivations that have been collected as garbage since
    `index` was made are evaluated again.

    Raises what evaluating does, PathsMissing and StorageError.
    """
    packages = [entry.result async for entry in index.entries() if isinstance(entry.result, Package)]
    by_drv = {StorePath.parse(package.drv_path): package for package in packages}
    graph = await derivations(path_infos, by_drv)
    if gone := [package for drv, package in by_drv.items() if drv not in graph]:
        progress(f"evaluating {len(gone)} packages again")
        anew = replace(package_set, pin=None)
        for start in range(0, len(gone), _ASKED_TOGETHER // 4):
            names = [package.attribute for package in gone[start : start + _ASKED_TOGETHER // 4]]
            await evaluator.evaluate(anew, system, names)
        graph = await derivations(path_infos, by_drv)
        if missing := by_drv.keys() - graph.keys():
            raise PathsMissing(tuple(sorted(map(str, missing))))
    progress(f"counting for {len(by_drv)} packages among {len(graph)} derivations")
    return count_dependents(graph, sorted(by_drv))


async def derivations(
    path_infos: PathInfoSource, roots: Iterable[StorePath]
) -> dict[StorePath, list[StorePath]]:
    """The graph below those `roots` that are known."""
    graph: dict[StorePath, list[StorePath]] = {}
    asked: set[StorePath] = set()
    pending = set(roots)
    while pending:
        some = sorted(pending)[:_ASKED_TOGETHER]
        asked.update(some)
        for path, info in (await path_infos.path_infos(some)).items():
            if path.name.endswith(_DRV):
                # A derivation refers to those it is built from, and to files.
                graph[path] = [
                    other for other in info.references if other.name.endswith(_DRV) and other != path
                ]
                pending.update(graph[path])
        pending = {path for path in pending if path not in graph and path not in asked}
    return graph


def count_dependents(graph: Graph, packages: Sequence[StorePath]) -> dict[str, int]:
    """For each name how many `packages` of other names reach a derivation of it."""
    order = list(TopologicalSorter(graph).static_order())
    order.reverse()  # whoever depends on a derivation comes before it
    counts: Counter[str] = Counter()
    for start in range(0, len(packages), _COUNTED_TOGETHER):
        users = {drv: 1 << number for number, drv in enumerate(packages[start : start + _COUNTED_TOGETHER])}
        own: Counter[str] = Counter()
        by_name: dict[str, int] = {}
        for drv, bit in users.items():
            own[_name(drv)] |= bit
        for drv in order:
            bits = users.pop(drv, 0)
            if bits:
                for other in graph.get(drv, ()):
                    users[other] = users.get(other, 0) | bits
                by_name[_name(drv)] = by_name.get(_name(drv), 0) | bits
        for name, bits in by_name.items():
            counts[name] += (bits & ~own[name]).bit_count()
    return {name: count for name, count in sorted(counts.items()) if count}


def _name(drv: StorePath) -> str:
    return without_version(drv.name.removesuffix(_DRV))
