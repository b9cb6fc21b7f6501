"""containerd's leases: one for each import, of our own, so that none outlives a crash of containerd for long."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from google.protobuf.empty_pb2 import Empty

from nixery_snap.errors import ContainerdError
from nixery_snap.image_service.containerd import Containerd
from nixery_snap.image_service.generated.containerd_services_leases_pb2 import (
    CreateRequest,
    DeleteRequest,
    ListRequest,
    ListResponse,
)

log = structlog.get_logger()

_LEASES: Final = "/containerd.services.leases.v1.Leases"
_PREFIX: Final = "nixery-snap-"
_AT_MOST: Final = timedelta(hours=6)  # should nobody be there to give it back


class Leases:
    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._held: set[str] = set()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[str]:
        """The id of a lease that is given back behind, or by `drop_orphans` when that fails. Raises ContainerdError."""
        lease = f"{_PREFIX}{uuid.uuid4().hex}"
        self._held.add(lease)
        try:
            await self._make(lease)
            yield lease
        finally:
            self._held.discard(lease)
            try:
                await self._drop(lease, sync=False)
            except ContainerdError as error:
                log.info("lease-not-dropped", lease=lease, reason=str(error))

    async def drop_orphans(self) -> None:
        """Those of ours that nobody holds any more; at the end containerd has cleaned up behind them."""
        answer = await self._containerd.call(
            f"{_LEASES}/List", ListRequest(), ListResponse, "list its leases"
        )
        for lease in answer.leases:
            if lease.id.startswith(_PREFIX) and lease.id not in self._held:
                await self._drop(lease.id, sync=True)
                log.info("lease-dropped", lease=lease.id)

    async def collect(self) -> None:
        """Have containerd remove what nothing needs: it does when it is asked to wait for that with a lease's end."""
        lease = f"{_PREFIX}{uuid.uuid4().hex}"
        await self._make(lease)
        await self._drop(lease, sync=True)

    async def _make(self, lease: str) -> None:
        expiry = (datetime.now(UTC) + _AT_MOST).isoformat(timespec="seconds")
        await self._containerd.call(
            f"{_LEASES}/Create",
            CreateRequest(id=lease, labels={"containerd.io/gc.expire": expiry}),
            Empty,
            "make a lease",
        )

    async def _drop(self, lease: str, *, sync: bool) -> None:
        await self._containerd.call(
            f"{_LEASES}/Delete", DeleteRequest(id=lease, sync=sync), Empty, "drop a lease"
        )
