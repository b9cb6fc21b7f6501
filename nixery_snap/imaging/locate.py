"""From out paths to their closure, by asking for path infos level by level."""

from __future__ import annotations

from collections.abc import Collection

from nixery_snap.errors import PathsMissing
from nixery_snap.nix.path_info import Closure, PathInfo, reachable
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import PathInfoSource


async def find_closure(source: PathInfoSource, roots: Collection[StorePath]) -> Closure:
    """Breadth first; each path is asked for at most once. Raises PathsMissing."""
    known: dict[StorePath, PathInfo] = {}
    asked: set[StorePath] = set()
    while True:
        closure, unknown = reachable(roots, known)
        if not unknown:
            return closure
        if missing := unknown & asked:
            raise PathsMissing(tuple(map(str, sorted(missing))))
        asked |= unknown
        known.update(await source.path_infos(unknown))
