"""Follows symbolic links across store paths, the way the kernel would inside an image."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from nixery_snap.nix.file_tree import Directory, Node, Symlink
from nixery_snap.nix.path_info import Closure
from nixery_snap.nix.store_path import STORE_DIR, StorePath, store_path_of
from nixery_snap.ports import StoreContents

_MAX_LINKS = 40  # as Linux: path_resolution(7)
_STORE_PARTS = STORE_DIR.strip("/").split("/")


class Resolver:
    """Looks nodes up by absolute path among the store paths of `closure`; file trees are read once."""

    def __init__(self, contents: StoreContents, closure: Closure) -> None:
        self._contents = contents
        self._closure = closure
        self._roots: dict[StorePath, Node] = {}
        self._trees: dict[StorePath, Node] = {}

    async def roots(self, paths: Collection[StorePath]) -> Mapping[StorePath, Node]:
        """The root of each store path, links followed not; directories without their entries."""
        if unknown := [self._closure[path] for path in paths if path not in self._roots]:
            self._roots.update(await self._contents.roots(unknown))
        return {path: self._roots[path] for path in paths}

    async def read_trees(self, paths: Collection[StorePath]) -> None:
        """At the same time, as they may be far away; `follow` finds them read."""
        await self.roots(paths)
        await asyncio.gather(*map(self._tree, paths))

    async def follow(self, path: str) -> tuple[str, Node] | None:
        """The real path and node at `path`, a directory with its entries, all links followed.

        None where nothing is, where links go in circles, or where they leave the closure: whatever stands
        there belongs to the machine that looks, not to the image.
        """
        pending = path.split("/")[::-1]
        walked: list[tuple[str, Node]] = []
        links = 0
        while pending:
            part = pending.pop()
            if walked and not isinstance(walked[-1][1], Directory):
                return None  # the kernel's ENOTDIR, also for `file/`, `file/.` and `file/..`
            if part in {"", "."}:
                continue
            if part == "..":
                del walked[-1:]
                continue
            node = await self._child(walked, part)
            if node is None:
                return None
            if not isinstance(node, Symlink):
                walked.append((part, node))
                continue
            links += 1
            if links > _MAX_LINKS:
                return None
            if node.target.startswith("/"):
                walked.clear()
            pending.extend(node.target.split("/")[::-1])
        if len(walked) <= len(_STORE_PARTS):
            return None
        return "/" + "/".join(name for name, _ in walked), walked[-1][1]

    async def _child(self, walked: list[tuple[str, Node]], name: str) -> Node | None:
        depth = len(walked)
        if depth < len(_STORE_PARTS):
            return Directory() if name == _STORE_PARTS[depth] else None
        if depth == len(_STORE_PARTS):
            located = store_path_of(f"{STORE_DIR}/{name}")
            return await self._tree(located[0]) if located and located[0] in self._closure else None
        directory = walked[-1][1]
        return directory.entries.get(name) if isinstance(directory, Directory) else None

    async def _tree(self, path: StorePath) -> Node:
        if path not in self._trees:
            tree = (await self.roots((path,)))[path]
            if isinstance(tree, Directory):  # a link or a file is its own whole tree
                tree = await self._contents.file_tree(self._closure[path])
            self._trees[path] = tree
        return self._trees[path]
