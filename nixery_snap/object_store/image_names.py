"""The names under which images were made, as keys of an object store."""

from __future__ import annotations

from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore


class StoredImageNames:
    """Implements the port ImageNames."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, name: str, image: str) -> None:
        await self._store.put(keys.image_name(name), image.encode())

    async def all(self) -> list[str]:
        return sorted([keys.name_of(key) async for key, _ in self._store.list(keys.IMAGE_NAMES)])
