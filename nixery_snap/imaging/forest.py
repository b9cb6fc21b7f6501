"""The forest: the symlinks (and few files) that make `/bin`, `/etc` … of an image from its packages.

A directory of the first level is always a real one, so that runtimes and derived images can write into it;
below, a directory that only one package brings is one symlink, and one that several bring is merged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nixery_snap.imaging.resolver import Resolver
from nixery_snap.nix.file_tree import Directory
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.tar import TarEntry

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = b"root:x:0:\nnobody:x:65534:\n"


@dataclass(frozen=True, slots=True)
class Link:
    target: str


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    mode: int = 0o644


@dataclass(slots=True)
class Folder:
    children: dict[str, ForestNode] = field(default_factory=dict)
    mode: int = 0o755

    def find(self, path: str) -> ForestNode | None:
        """The node at a relative path, links not followed."""
        node: ForestNode | None = self
        for part in path.split("/"):
            node = node.children.get(part) if isinstance(node, Folder) else None
        return node

    def add(self, path: str, node: ForestNode) -> bool:
        """Put `node` at a relative path where nothing is yet, making folders on the way; tells whether it did."""
        *parents, name = path.split("/")
        folder = self
        for part in parents:
            child = folder.children.setdefault(part, Folder())
            if not isinstance(child, Folder):
                return False
            folder = child
        return folder.children.setdefault(name, node) is node


ForestNode = Link | File | Folder


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two packages bring the same path; `loser`'s stays out."""

    path: str
    winner: str
    loser: str


async def build_forest(resolver: Resolver, outputs: Sequence[StorePath]) -> tuple[Folder, list[Conflict]]:
    """The union of the trees of `outputs`, the first of them winning conflicts."""
    conflicts: list[Conflict] = []
    sources: dict[str, _Source] = {}
    await resolver.read_trees(outputs)
    for output in outputs:
        found = await resolver.follow(str(output))
        if found is not None and isinstance(found[1], Directory):
            sources.setdefault(found[0], _Source(found[0], found[1], frozenset()))
    forest = await _merge(resolver, "", list(sources.values()), conflicts)
    # The image's own ground: a package must not shadow where the store is.
    forest.children.pop("nix", None)
    return forest, conflicts


def add_rootfs_extras(forest: Folder) -> None:
    """What a root file system needs beside the packages, unless a package brings it."""
    for name, mode in (("etc", 0o755), ("tmp", 0o1777)):
        # Runtimes write into these: a package's file or link of that name has to give way.
        if not isinstance(folder := forest.children.get(name), Folder):
            folder = forest.children[name] = Folder()
        folder.mode = mode
    if forest.find("bin/env"):
        forest.add("usr/bin/env", Link("/bin/env"))
    forest.add("etc/passwd", File(_PASSWD))
    forest.add("etc/group", File(_GROUP))
    forest.add("root", Folder(mode=0o700))


def forest_entries(folder: Folder, prefix: bytes = b"") -> Iterator[tuple[TarEntry, tuple[bytes, ...]]]:
    """Tar members of all that is in `folder`: parents first, siblings in byte order."""
    for name, node in sorted((os.fsencode(name), node) for name, node in folder.children.items()):
        path = prefix + name
        match node:
            case Link(target):
                yield TarEntry.symlink(path, os.fsencode(target)), ()
            case File(content, mode):
                yield TarEntry.regular(path, len(content), mode), (content,)
            case Folder(_, mode):
                yield TarEntry.directory(path, mode), ()
                yield from forest_entries(node, path + b"/")


@dataclass(frozen=True, slots=True)
class _Source:
    """A directory to be merged: its real path and entries, and the real paths of those it was reached through."""

    real: str
    node: Directory
    above: frozenset[str]

    async def child(self, resolver: Resolver, name: str) -> _Source | None:
        """The directory `name` in it, links followed.

        A link back to where one came from, such as ncurses' `include/ncurses -> .`, has no end and is none.
        """
        above = self.above | {self.real}
        found = await resolver.follow(f"{self.real}/{name}")
        if found is None or not isinstance(found[1], Directory) or found[0] in above:
            return None
        return _Source(found[0], found[1], above)


async def _merge(
    resolver: Resolver, path: str, sources: Sequence[_Source], conflicts: list[Conflict]
) -> Folder:
    """Merge directories all of which stand at `path` in the image, the winner of conflicts first."""
    folder = Folder()
    first_level = not path
    for name in sorted({name for source in sources for name in source.node.entries}):
        owners = [source for source in sources if name in source.node.entries]
        target = f"{owners[0].real}/{name}"
        if len(owners) == 1 and not first_level:
            folder.children[name] = Link(target)
            continue
        here = f"{path}/{name}"
        children = [await owner.child(resolver, name) for owner in owners]
        directories = {child.real: child for child in reversed(children) if child is not None}
        if children[0] is None:
            losers = owners[1:]
        else:
            losers = [owner for owner, child in zip(owners, children, strict=True) if child is None]
        if children[0] is None or (len(directories) == 1 and not first_level):
            folder.children[name] = Link(target)
        else:
            merged = list(reversed(directories.values()))
            folder.children[name] = await _merge(resolver, here, merged, conflicts)
        conflicts.extend(Conflict(here, target, f"{loser.real}/{name}") for loser in losers)
    return folder
