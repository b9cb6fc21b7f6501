"""From out paths to their closure, by asking for path infos level by level."""

from __future__ import annotations

from collections.abc import Collection

from nixery_snap.errors import PathsMissing
from nixery_snap.nix.path_info import Closure, PathInfo, references_first
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import PathInfoSource


async def find_closure(source: PathInfoSource, roots: Collection[StorePath]) -> Closure:
    """Breadth first; each path is asked for at most once.

    Raises PathsMissing, CircularReferences.
    """
    known: dict[StorePath, PathInfo] = {}
    unknown = set(roots)
    while unknown:
        answer = await source.path_infos(unknown)
        known.update(answer)
        if missing := unknown.difference(known):
            raise PathsMissing(tuple(map(str, sorted(missing))))
        unknown = {path for info in answer.values() for path in info.references}.difference(known)
    closure = {path: known[path] for path in sorted(known)}
    for _ in references_first(closure):
        pass
    return closure
