"""Which store paths of a classic image share a layer.

Docker fetches a layer again when one byte of it changed, so paths that other images have too should be
layers of their own, and paths that only come along with another should share its layer. Both are read off
the closure's graph: in its dominator tree a node's subtree is what comes along with it alone.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Final

import networkx as nx

from nixery_snap.nix.path_info import Closure
from nixery_snap.nix.store_path import StorePath

DEFAULT_MAX_LAYERS: Final = 100  # overlayfs stops at 128 lower directories; the user needs some too
OWN_LAYER_BYTES: Final = 100 * 1000 * 1000
OWN_LAYER_POPULARITY: Final = 8
_ROOT: Final = "image"  # refers to every requested output


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


def layer_groups(closure: Closure, outputs: tuple[StorePath, ...], max_groups: int) -> list[Group]:
    """Every path of `closure` in exactly one group, at most `max_groups`, the highest rated first.

    A path gets a layer of its own, together with what it dominates, when that is large or when many paths of
    the closure refer to it; what nobody dominates but the image starts a group as well. The groups with the
    lowest ratings are then merged until few enough are left.
    """
    graph: nx.DiGraph[StorePath | str] = nx.DiGraph()
    graph.add_edges_from((_ROOT, output) for output in outputs)
    graph.add_edges_from(
        (path, reference)
        for path, info in closure.items()
        for reference in info.references
        if reference != path
    )
    popularity = {path: graph.in_degree(path) for path in closure}
    dominator = nx.immediate_dominators(graph, _ROOT)
    children: dict[StorePath | str, list[StorePath]] = {}
    for path in closure:
        children.setdefault(dominator[path], []).append(path)

    subtree = {path: info.nar_size for path, info in closure.items()}
    top_down: list[StorePath] = list(children[_ROOT])
    for path in top_down:  # grows while it is read
        top_down.extend(children.get(path, ()))
    for path in reversed(top_down):
        above = dominator[path]
        if isinstance(above, StorePath):
            subtree[above] += subtree[path]

    head: dict[StorePath, StorePath] = {}
    for path in top_down:
        above = dominator[path]
        own = popularity[path] >= OWN_LAYER_POPULARITY or subtree[path] >= OWN_LAYER_BYTES
        head[path] = head[above] if isinstance(above, StorePath) and not own else path

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


def _order(group: Group) -> tuple[int, tuple[StorePath, ...]]:
    return -group.rating, group.paths
