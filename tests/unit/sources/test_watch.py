"""What a watch must notice beside edits: its root's name may come to mean another directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery_snap.sources.watch import DirectoryWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


def swap_link(base: Path) -> None:
    new = base / "new-link"
    new.symlink_to("v2")
    new.rename(base / "current")


def replace_link(base: Path) -> None:
    (base / "current").unlink()
    (base / "current").symlink_to("v2")


def rename_ancestor(base: Path) -> None:
    (base / "v1").rename(base / "old")
    (base / "v2").rename(base / "v1")


def rename_root(base: Path) -> None:
    (base / "v1/packages").rename(base / "v1/elsewhere")


def touch_file(base: Path) -> None:
    (base / "v1/packages/default.nix").touch()


@pytest.mark.parametrize("change", [swap_link, replace_link, rename_ancestor, rename_root, touch_file])
def test_noticed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    for version in ("v1", "v2"):
        (tmp_path / version / "packages").mkdir(parents=True)
        (tmp_path / version / "packages/default.nix").touch()
    (tmp_path / "current").symlink_to("v1")
    watch = DirectoryWatch(tmp_path / "current/packages", [])
    try:
        assert watch.quiet()
        (tmp_path / "unrelated").mkdir()  # beside the way, not on it
        (tmp_path / "v1/unrelated").touch()
        assert watch.quiet()
        change(tmp_path)
        assert not watch.quiet()
        assert not watch.quiet()
    finally:
        watch.close()
