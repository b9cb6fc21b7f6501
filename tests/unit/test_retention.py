import os
import time
from pathlib import Path

import pytest

from nixery_snap import retention
from nixery_snap.adapters import open_every
from nixery_snap.errors import StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    flags = {"storage": f"file://{tmp_path}/storage", "cache_directory": str(tmp_path / "cache")}
    return load_settings(None, flags, {})


async def test_links_that_cannot_be_looked_at(settings: Settings) -> None:
    """Servers go on to look after their store."""
    settings.gc_roots_path.parent.mkdir()
    settings.gc_roots_path.write_bytes(b"")
    with pytest.raises(StorageError):
        await retention.remove_roots(settings, ObjectStore(settings.storage_url))


async def test_links_of_many_images(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are opened once, however many links there are: each is a connection, or reads a directory."""
    settings.gc_roots_path.mkdir(parents=True)
    images = [f"{number:064x}" for number in range(5)]
    before = time.time() - 1_000_000
    for image in images:
        link = settings.gc_roots_path / image
        link.symlink_to("/nix/store/x")
        os.utime(link, (before, before), follow_symlinks=False)
    opened = []

    def counted(settings: Settings) -> list[ObjectStore]:
        opened.append(settings)
        return open_every(settings)

    monkeypatch.setattr(retention, "open_every", counted)
    store = ObjectStore(settings.storage_url)
    await store.put(keys.record("image", images[2]), b"{}")
    await retention.remove_roots(settings, store)
    assert os.listdir(settings.gc_roots_path) == [images[2]]
    assert len(opened) == 1
