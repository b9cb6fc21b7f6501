"""The file tree of a store object: what a NAR or a listing (`.ls`) can say of it (Nix manual, "File System Object").

Names are text with undecodable bytes as lone surrogates (PEP 383), as `os.fsdecode` gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


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
