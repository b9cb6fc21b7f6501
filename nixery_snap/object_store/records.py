"""JSON records over an object store, with a bounded memory of what was read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import structlog
from cachetools import LRUCache

from nixery_snap.object_store import keys as names
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci import canonical_json

log = structlog.get_logger()

_OBJECTS_PER_TEXT = 5  # about what parsed JSON takes against its text


class StoredRecords:
    """Implements the port Records. `memory_bytes` bounds, roughly, what is kept in memory."""

    def __init__(self, store: ObjectStore, memory_bytes: int) -> None:
        self._store = store
        self._memory: LRUCache[str, tuple[Any, int]] = LRUCache(memory_bytes, getsizeof=lambda item: item[1])

    @property
    def memory_bytes(self) -> int:
        """What is kept, roughly."""
        return int(self._memory.currsize)

    async def get(self, kind: str, key: str) -> Any | None:
        return (await self.get_many(kind, (key,))).get(key)

    async def get_many(self, kind: str, keys: Collection[str]) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        unknown: dict[str, str] = {}
        for key in keys:
            name = names.record(kind, key)
            if known := self._memory.get(name):
                found[key] = known[0]
            else:
                unknown[name] = key
        for name, content in (await self._store.get_many(list(unknown))).items():
            try:
                value = json.loads(content)
            except (ValueError, RecursionError):
                # Only a machine that lost power can leave this. It would stay for ever, as records are
                # never overwritten, so it makes room for a new one.
                log.warning("record-damaged", record=name)
                await self._store.delete(name)
                continue
            self._remember(name, value, len(content))
            found[unknown[name]] = value
        return found

    async def put(self, kind: str, key: str, value: Any) -> Any:
        name, content = names.record(kind, key), canonical_json.encode(value)
        if await self._store.put_if_absent(name, content):
            self._remember(name, value, len(content))
            return value
        recorded = await self.get(kind, key)
        return value if recorded is None else recorded

    async def replace(self, kind: str, key: str, value: Any) -> None:
        name, content = names.record(kind, key), canonical_json.encode(value)
        await self._store.put(name, content)
        self._remember(name, value, len(content))

    def forget(self) -> None:
        """What was read or written, as it may have been removed since."""
        self._memory.clear()

    def _remember(self, name: str, value: Any, text_bytes: int) -> None:
        weight = text_bytes * _OBJECTS_PER_TEXT
        if weight <= self._memory.maxsize:
            self._memory[name] = value, weight
