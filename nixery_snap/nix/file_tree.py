"""The file tree of a store object: what a NAR or a listing (`.ls`) can say of it (Nix manual, "File System Object").

Names are text with undecodable bytes as lone surrogates (PEP 383), as `os.fsdecode` gives them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from nixery_snap.errors import InvalidFormat

MAX_DEPTH: Final = 256  # of directories in each other; readers refuse more, so that recursion is safe
MAX_NAME: Final = 255  # bytes, as in every file system
MAX_TARGET: Final = 4095  # bytes, Linux's PATH_MAX without its NUL


@dataclass(frozen=True, slots=True)
class Regular:
    size_bytes: int
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Symlink:
    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """`entries` is empty where only the kind of the node was asked for."""

    entries: Mapping[str, Node] = field(default_factory=dict)


Node = Regular | Symlink | Directory


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file system object of a file tree; `name` is relative to its root, empty for the root itself.

    `content` is what a regular file holds; a directory's `node` has no entries here.
    """

    name: bytes
    node: Node
    content: Iterator[bytes]


def name_defect(name: bytes) -> str | None:
    """Why `name` cannot be that of a directory entry; None if it can."""
    if name in {b"", b".", b".."}:
        return "a name must not be empty, '.' or '..'"
    if len(name) > MAX_NAME:
        return f"a name has at most {MAX_NAME} bytes"
    if b"/" in name or b"\0" in name:
        return "a name must not hold '/' or NUL"
    return None


def target_defect(target: bytes) -> str | None:
    """Why `target` cannot be that of a symbolic link; None if it can."""
    if not 0 < len(target) <= MAX_TARGET or b"\0" in target:
        return f"a link's target has 1 to {MAX_TARGET} bytes, none of them NUL"
    return None


def tree_of(entries: Iterable[tuple[bytes, Node]]) -> Node:
    """The tree of entries named as in FileEntry, root first and parents before children; raises InvalidFormat.

    Directories get their entries here, in the order given; those that their nodes have do not count.
    """
    root: Node | None = None
    directories: dict[bytes, dict[str, Node]] = {}
    for name, node in entries:
        here = node
        if isinstance(node, Directory):
            children: dict[str, Node] = {}
            directories[name], here = children, Directory(children)
        if root is None and not name:
            root = here
            continue
        parent, _, base_name = name.rpartition(b"/")
        siblings = directories.get(parent)
        if siblings is None or root is None:
            raise InvalidFormat("file tree", name, "its directory does not come before it")
        if defect := name_defect(base_name):
            raise InvalidFormat("file tree", name, defect)
        text = os.fsdecode(base_name)
        if text in siblings:
            raise InvalidFormat("file tree", name, "it is there twice")
        siblings[text] = here
    if root is None:
        raise InvalidFormat("file tree", b"", "it has no root")
    return root
