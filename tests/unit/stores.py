"""Store directories made by hand: real files for the real readers, without Nix."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from nixery_snap.nix import base32
from nixery_snap.nix.path_info import Closure, PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.local_store import StoreFiles


@dataclass(frozen=True)
class To:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Run:
    """An executable file."""

    content: bytes = b"#!/bin/sh\n"


Tree = Mapping[str, "Tree"] | To | Run | bytes


def store_path(name: str) -> StorePath:
    """Some store path with that name, always the same."""
    return StorePath(base32.encode(hashlib.sha256(name.encode()).digest()[:20]), name)


def info(
    path: StorePath, references: tuple[StorePath, ...] = (), nar_size: int = 1000, content: str = ""
) -> PathInfo:
    digest = hashlib.sha256(f"{path}{content}".encode()).digest()
    return PathInfo(path, f"sha256:{base32.encode(digest)}", nar_size, tuple(sorted(references)))


@dataclass
class FileStore:
    """Store paths as files below `root`, and what a database would say of them."""

    root: Path
    closure: dict[StorePath, PathInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.root / "nix/store").mkdir(parents=True)

    @property
    def contents(self) -> StoreFiles:
        return StoreFiles(self.root)

    def add(self, name: str, tree: Tree, *references: StorePath) -> StorePath:
        path = store_path(name)
        write(self.root / "nix/store" / path.base_name, tree)
        self.closure = dict(sorted({**self.closure, path: info(path, references)}.items()))
        return path


def write(path: Path, tree: Tree) -> None:
    match tree:
        case bytes():
            path.write_bytes(tree)
        case Run(content):
            path.write_bytes(content)
            path.chmod(0o755)
        case To(target):
            os.symlink(target, path)  # noqa: PTH211 - may hold any bytes
        case _:
            path.mkdir()
            for name, child in tree.items():
                write(path / name, child)


store_paths = st.builds(
    StorePath,
    st.binary(min_size=20, max_size=20).map(base32.encode),
    st.from_regex(r"[0-9A-Za-z+\-_?=][0-9A-Za-z+\-._?=]{0,210}", fullmatch=True),
)


def reachable(
    roots: Iterable[StorePath], infos: Mapping[StorePath, PathInfo]
) -> tuple[Closure, set[StorePath]]:
    """What `roots` reach through `infos`, and the paths reached of which `infos` says nothing."""
    found: dict[StorePath, PathInfo] = {}
    unknown: set[StorePath] = set()
    pending = list(roots)
    while pending:
        path = pending.pop()
        if (known := infos.get(path)) is None:
            unknown.add(path)
        elif path not in found:
            found[path] = known
            pending.extend(known.references)
    return {path: found[path] for path in sorted(found)}, unknown
