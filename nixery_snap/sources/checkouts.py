"""Checked-out revisions below one directory: immutable, shared by all that read them, bounded in number."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nixery_snap.nix.store_path import STORE_DIR

KEPT: Final = 8
_IN_USE_SECONDS: Final = 3600
_STALE_SECONDS: Final = 24 * 3600
_STAGED: Final = ".new-"


class Checkouts:
    """`<revision>/source` below `directory`, which several processes may share. All methods are blocking.

    The `kept` youngest by last use stay; older ones go when nobody asked for them for an hour, or when there are
    four times as many: images of older revisions are served from the records.
    """

    def __init__(self, directory: Path, kept: int = KEPT) -> None:
        self._directory = directory
        self._kept = kept

    def find(self, revision: str) -> Path | None:
        """The checkout, if it is here; it counts as used now."""
        path = self._directory / revision
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
        source = path / "source"
        return source if source.is_dir() else None

    def stage(self) -> Path:
        """An empty directory in which to make `source`; for `keep`, and in any case for `discard`."""
        self._directory.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=self._directory)) / "checkout"
        staged.mkdir()
        return staged

    def keep(self, staged: Path, revision: str) -> Path:
        """Put what was staged under its revision, all at once, and return its `source`."""
        final = self._directory / revision
        if final.is_dir() and not (final / "source").is_dir():
            shutil.rmtree(final, ignore_errors=True)  # whoever cleaned up stopped half-way
        with contextlib.suppress(OSError):  # another process was faster, with the same content
            staged.rename(final)
        self._prune()
        return final / "source"

    def discard(self, staged: Path) -> None:
        shutil.rmtree(staged.parent, ignore_errors=True)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        staged = self.stage()
        try:
            yield staged
        finally:
            self.discard(staged)

    def _prune(self) -> None:
        """What a killed process left half-made goes as well, once it is too old to be another one's work."""
        now = time.time()
        found = [(_used(path), path) for path in self._directory.iterdir()]
        for used, path in found:
            if path.name.startswith(_STAGED) and used < now - _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        copies = sorted(item for item in found if not item[1].name.startswith("."))
        while len(copies) > self._kept:
            used, path = copies.pop(0)
            if used < now - _IN_USE_SECONDS or len(copies) >= 4 * self._kept:
                shutil.rmtree(path, ignore_errors=True)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process removed it
        return 0


def leaves(link: str, target: str) -> bool:
    """Whether a link at a relative path may lead out of the tree, other than into the Nix store.

    Only leading `..` are followed on paper: behind the name of another link, `..` means something else.
    """
    parts = [part for part in target.split("/") if part not in {"", "."}]
    climbs = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    if ".." in parts[climbs:]:
        return True
    if target.startswith("/"):
        return climbs > 0 or not target.startswith(f"{STORE_DIR}/")
    return climbs > link.count("/")
