"""Pins of moving tags as objects that are replaced."""

from __future__ import annotations

import json

import structlog

from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci import canonical_json
from nixery_snap.ports import Pin

log = structlog.get_logger()


class StoredPins:
    """Implements the port PinStore."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def get(self, source: str, tag: str) -> tuple[Pin, float] | None:
        content = await self._store.get(keys.pin(source, tag))
        if content is None:
            return None
        try:
            value = json.loads(content)
            pin, made = Pin(value["revision"], value["url"], value["variant"]), value["made"]
            if isinstance(pin.revision, str) and isinstance(made, int | float):
                return pin, made
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        log.warning("pin-damaged", source=source, tag=tag)  # a new one will replace it
        return None

    async def put(self, source: str, tag: str, pin: Pin, made: float) -> None:
        value = {"revision": pin.revision, "url": pin.url, "variant": pin.variant, "made": made}
        # For people who look into the store: its key tells nobody whose pin it is.
        about = {"source": source, "tag": tag}
        await self._store.put(keys.pin(source, tag), canonical_json.encode(value | about))

    async def delete(self, source: str, tag: str) -> None:
        await self._store.delete(keys.pin(source, tag))
