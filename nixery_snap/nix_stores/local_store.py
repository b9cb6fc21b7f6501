"""The local Nix store: its database (Nix, src/libstore/schema.sql) and its files, both read-only."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from nixery_snap.errors import InvalidFormat, PathsMissing, StorageError
from nixery_snap.nix import base32
from nixery_snap.nix.file_tree import Directory, FileEntry, Node, Regular, Symlink
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath

_CHUNK_BYTES: Final = 256 * 1024
# All that the given paths reach, each with its references, in one question.
_CLOSURE_SQL: Final = """
    WITH RECURSIVE closure(id) AS (
        SELECT id FROM ValidPaths WHERE path IN (SELECT value FROM json_each(?))
        UNION
        SELECT reference FROM Refs JOIN closure ON referrer = closure.id
    )
    SELECT v.path, v.hash, v.narSize, v.deriver, v.sigs, v.ca, group_concat(r.path, ' ')
    FROM closure JOIN ValidPaths v ON v.id = closure.id
    LEFT JOIN Refs ON Refs.referrer = v.id LEFT JOIN ValidPaths r ON r.id = Refs.reference
    GROUP BY v.id
"""


class StoreDatabase:
    """Implements the port PathInfoSource; answers with whole closures."""

    def __init__(self, database: Path) -> None:
        self._url = f"{database.absolute().as_uri()}?mode=ro"

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        return await asyncio.to_thread(self._query, paths)

    def _query(self, paths: Collection[StorePath]) -> dict[StorePath, PathInfo]:
        wanted = json.dumps([str(path) for path in paths])
        try:
            with closing(sqlite3.connect(self._url, uri=True)) as connection:
                rows = connection.execute(_CLOSURE_SQL, (wanted,)).fetchall()
            infos = (_path_info(*row) for row in rows)
            return {info.path: info for info in infos}
        except (sqlite3.Error, InvalidFormat) as error:
            raise StorageError(f"the Nix store's database cannot be read: {error}") from error


def _path_info(
    path: str,
    nar_hash: str,
    nar_size: int,
    deriver: str | None,
    signatures: str | None,
    content_address: str | None,
    references: str | None,
) -> PathInfo:
    algorithm, _, digest = nar_hash.partition(":")
    if algorithm != "sha256":
        raise InvalidFormat("NAR hash", nar_hash, "only sha256 is known")
    return PathInfo(
        StorePath.parse(path),
        f"sha256:{base32.encode(bytes.fromhex(digest))}",
        nar_size or 0,
        tuple(sorted(map(StorePath.parse, (references or "").split()))),
        StorePath.parse(deriver) if deriver else None,
        tuple((signatures or "").split()),
        content_address or None,
    )


class StoreFiles:
    """Implements the port StoreContents. `root` is the directory that physically holds `nix/store`."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "nix/store"

    async def roots(self, infos: Collection[PathInfo]) -> Mapping[StorePath, Node]:
        return await asyncio.to_thread(lambda: {info.path: self._root(info.path) for info in infos})

    async def file_tree(self, info: PathInfo) -> Node:
        return await asyncio.to_thread(self._file_tree, info.path)

    def entries(self, info: PathInfo) -> Iterator[FileEntry]:
        root = os.fsencode(self._directory / info.path.base_name)
        node = self._root(info.path)
        yield FileEntry(b"", node, _content(root, node))
        if isinstance(node, Directory):
            yield from _below(root)

    def _root(self, path: StorePath) -> Node:
        try:
            return _node(os.fsencode(self._directory / path.base_name))
        except FileNotFoundError:
            raise PathsMissing((str(path),)) from None

    def _file_tree(self, path: StorePath) -> Node:
        root = self._root(path)
        return _tree(os.fsencode(self._directory / path.base_name)) if isinstance(root, Directory) else root


def _below(root: bytes) -> Iterator[FileEntry]:
    pending = sorted(os.listdir(root), reverse=True)
    while pending:
        name = pending.pop()
        path = root + b"/" + name
        node = _node(path)
        yield FileEntry(name, node, _content(path, node))
        if isinstance(node, Directory):
            pending += [name + b"/" + child for child in sorted(os.listdir(path), reverse=True)]


def _tree(directory: bytes) -> Directory:
    entries: dict[str, Node] = {}
    for name in sorted(os.listdir(directory)):
        path = directory + b"/" + name
        node = _node(path)
        entries[os.fsdecode(name)] = _tree(path) if isinstance(node, Directory) else node
    return Directory(entries)


def _node(path: bytes) -> Node:
    """One file system object, links not followed."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return Symlink(os.fsdecode(os.readlink(path)))
    if stat.S_ISDIR(status.st_mode):
        return Directory()
    if stat.S_ISREG(status.st_mode):
        return Regular(status.st_size, bool(status.st_mode & stat.S_IXUSR))
    raise StorageError(f"{os.fsdecode(path)} is neither a file, a directory nor a link: not a store object")


def _content(path: bytes, node: Node) -> Iterator[bytes]:
    if not isinstance(node, Regular) or not node.size_bytes:
        return
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        left = node.size_bytes
        while left and (chunk := os.read(handle, min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk
    finally:
        os.close(handle)
