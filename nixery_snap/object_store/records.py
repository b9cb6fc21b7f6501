"""JSON records over an object store, with a bounded memory of what was read."""

from __future__ import annotations

import json
from typing import Any

import structlog
from cachetools import LRUCache

from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci import canonical_json

log = structlog.get_logger()


class StoredRecords:
    """Implements the port Records. `memory_bytes` bounds the JSON text kept in memory."""

    def __init__(self, store: ObjectStore, memory_bytes: int) -> None:
        self._store = store
        self._memory: LRUCache[str, bytes] = LRUCache(memory_bytes, getsizeof=len)

    async def get(self, kind: str, key: str) -> Any | None:
        name = keys.record(kind, key)
        content = self._memory.get(name)
        if content is None:
            content = await self._store.get(name)
            if content is None:
                return None
            self._remember(name, content)
        try:
            return json.loads(content)
        except ValueError:
            # Only a machine that lost power can leave this. It would stay for ever, as records are
            # never overwritten, so it makes room for a new one.
            log.warning("record-damaged", record=name)
            self._memory.pop(name, None)
            await self._store.delete(name)
            return None

    async def put(self, kind: str, key: str, value: Any) -> None:
        name, content = keys.record(kind, key), canonical_json.encode(value)
        if await self._store.put_if_absent(name, content):
            self._remember(name, content)

    def _remember(self, name: str, content: bytes) -> None:
        if len(content) <= self._memory.maxsize:
            self._memory[name] = content
