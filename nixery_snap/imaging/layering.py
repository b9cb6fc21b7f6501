"""Which store paths of a classic image share a layer.

Docker fetches a layer again when one byte of it changed, so paths that other images have too should be
layers of their own, and paths that only come along with another should share its layer. Both are read off
the closure's graph: in its dominator tree a node's subtree is what comes along with it alone. What other images
have is known better where it has been counted for the whole package set (`evaluation/popularity.py`).
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Final, Self

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.drv_name import without_version
from nixery_snap.nix.path_info import Closure
from nixery_snap.nix.store_path import StorePath

DEFAULT_MAX_LAYERS: Final = 100  # overlayfs stops at 128 lower directories; the user needs some too
OWN_LAYER_BYTES: Final = 100 * 1000 * 1000
OWN_LAYER_POPULARITY: Final = 8
_IMAGE: Final = None  # refers to every requested output


@dataclass(frozen=True, slots=True)
class Group:
    """Store paths of one layer, sorted; `popularity` and `nar_size` of all of them together."""

    paths: tuple[StorePath, ...]
    popularity: int
    nar_size: int

    @property
    def rating(self) -> int:
        """How much it is worth to have these apart: often used and large."""
        return self.popularity * self.nar_size


@dataclass(frozen=True, slots=True)
class Popularity:
    """How many packages depend on each, by name without version; `digest` stands for all of it, None for nothing."""

    counts: Mapping[str, int]
    digest: str | None = None

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """From a JSON object, as `nixery-snap popularity` makes it. Raises InvalidFormat."""
        try:
            counts = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InvalidFormat("popularity", content[:100], str(error)) from None
        if not isinstance(counts, dict) or not all(
            type(count) is int and count >= 0 for count in counts.values()
        ):
            raise InvalidFormat(
                "popularity", content[:100], "it maps names to how many packages depend on them"
            )
        return cls(counts, hashlib.sha256(content).hexdigest())

    def of(self, path: StorePath) -> int:
        return self.counts.get(without_version(path.name), 0)


UNKNOWN_POPULARITY: Final = Popularity({})


def layer_groups(
    closure: Closure,
    outputs: tuple[StorePath, ...],
    max_groups: int,
    known: Popularity = UNKNOWN_POPULARITY,
) -> list[Group]:
    """Every path of `closure` in exactly one group, at most `max_groups`, the highest rated first.

    A path gets a layer of its own, together with what it dominates, when that is large or when many paths of
    the closure refer to it or many packages are `known` to; what nobody dominates but the image starts a group as
    well. The groups with the lowest ratings are then merged until few enough are left.
    """
    referrers: dict[StorePath, set[StorePath | None]] = {path: set() for path in closure}
    for output in outputs:
        referrers[output].add(_IMAGE)
    for path, info in closure.items():
        for reference in info.references:
            if reference != path:
                referrers[reference].add(path)
    popularity = {path: max(len(referrers[path]), known.of(path)) for path in closure}
    dominator = _dominators(referrers)
    children: dict[StorePath | None, list[StorePath]] = {}
    for path in closure:
        children.setdefault(dominator[path], []).append(path)

    subtree = {path: info.nar_size for path, info in closure.items()}
    top_down: list[StorePath] = list(children[_IMAGE])
    for path in top_down:  # grows while it is read
        top_down.extend(children.get(path, ()))
    for path in reversed(top_down):
        above = dominator[path]
        if above is not _IMAGE:
            subtree[above] += subtree[path]

    head: dict[StorePath, StorePath] = {}
    for path in top_down:
        above = dominator[path]
        own = popularity[path] >= OWN_LAYER_POPULARITY or subtree[path] >= OWN_LAYER_BYTES
        head[path] = head[above] if above is not _IMAGE and not own else path

    members: dict[StorePath, list[StorePath]] = {}
    for path in closure:
        members.setdefault(head[path], []).append(path)
    groups = [
        Group(tuple(sorted(paths)), popularity[first], sum(closure[path].nar_size for path in paths))
        for first, paths in members.items()
    ]
    groups.sort(key=_order)
    while len(groups) > max_groups:
        last, before = groups.pop(), groups.pop()
        merged = Group(
            tuple(sorted(last.paths + before.paths)),
            max(last.popularity, before.popularity),
            last.nar_size + before.nar_size,
        )
        bisect.insort(groups, merged, key=_order)
    return groups


def _dominators(
    referrers: Mapping[StorePath, Set[StorePath | None]],
) -> dict[StorePath | None, StorePath | None]:
    """Of each path the nearest other one, or the image, without which nothing leads to it.

    Store paths refer to each other in no circle, so that is where the ways up from all its referrers meet.
    """
    above: dict[StorePath | None, StorePath | None] = {}
    depth: dict[StorePath | None, int] = {_IMAGE: 0}
    for path in TopologicalSorter(referrers).static_order():
        if path is _IMAGE:
            continue
        ways = set(referrers[path])
        while len(ways) > 1:
            deepest = max(ways, key=depth.__getitem__)
            ways.remove(deepest)
            ways.add(above[deepest])
        [above[path]] = ways
        depth[path] = depth[above[path]] + 1
    return above


def _order(group: Group) -> tuple[int, tuple[StorePath, ...]]:
    return -group.rating, group.paths
