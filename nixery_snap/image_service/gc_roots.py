"""Links that keep the store paths of this node's images from Nix's garbage collector: a directory for each image."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nixery_snap.errors import InvalidFormat, StorageError
from nixery_snap.nix import base32
from nixery_snap.nix.store_path import StorePath

_FIRST: Final = "root"  # Nix appends -2, -3 … for further paths


class GcRoots:
    """Keys are the hex of a manifest's digest, or anything else for what is needed while something goes on.

    `nix_state` is Nix's own directory, /nix/var/nix of its store.
    """

    def __init__(self, directory: Path, nix_state: Path) -> None:
        self._directory = directory
        self._indirect = nix_state / "gcroots/auto"
        self._in_use: Counter[str] = Counter()

    def link(self, key: str) -> Path:
        """Where Nix is to put the links of `key`. Raises StorageError."""
        try:
            (self._directory / key).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"no directory for links to store paths: {error}") from error
        return self._directory / key / _FIRST

    @contextmanager
    def used(self, key: str) -> Iterator[None]:
        """Meanwhile `unused` does not name it."""
        self._in_use[key] += 1
        try:
            yield
        finally:
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]

    def hold(self, key: str, paths: Collection[StorePath]) -> bool:
        return set(paths) <= self._of(self._directory / key)

    def add_link(self, key: str, link: Path, path: StorePath) -> bool:
        """Make `link` another root of a path that `key` holds already, as Nix does but without a process.

        Blocking; raises StorageError. False where Nix has to do it: its state is not ours to write, or `key` does not
        hold the path.
        """
        if not os.access(self._indirect, os.W_OK):
            return False
        with self.used(key):
            if not self.hold(key, [path]):
                return False
            # Nix, src/libstore/local-store: addIndirectRoot.
            name = base32.encode(hashlib.sha1(os.fsencode(link), usedforsecurity=False).digest())
            try:
                _replace_link(self._indirect / name, str(link))
                _replace_link(link, str(path))
            except OSError as error:
                raise StorageError(f"no link {link}: {error}") from error
        return True

    def unused(self) -> list[str]:
        """All keys that nobody uses just now. Blocking."""
        with suppress(FileNotFoundError):
            return sorted(set(os.listdir(self._directory)) - set(self._in_use))
        return []

    def all_paths(self) -> set[StorePath]:
        """Blocking."""
        with suppress(FileNotFoundError):
            keys = os.listdir(self._directory)
            return set().union(*(self._of(self._directory / key) for key in keys))
        return set()

    def remove(self, key: str) -> None:
        """Blocking; Nix forgets links that are gone by itself."""
        if key not in self._in_use:
            shutil.rmtree(self._directory / key, ignore_errors=True)

    @staticmethod
    def _of(directory: Path) -> set[StorePath]:
        paths = set()
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(directory):
                with suppress(OSError, InvalidFormat):
                    paths.add(StorePath.from_base_name(os.path.basename(os.readlink(directory / name))))  # noqa: PTH119 - text
        return paths


def _replace_link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex}")
    temporary.symlink_to(target)
    temporary.replace(link)
