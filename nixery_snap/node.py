"""Runs the image service of a node, wired from the settings."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from nixery_snap.image_service.options import ImageServiceOptions
from nixery_snap.image_service.server import NodeParts, serve_image_service
from nixery_snap.metrics_listener import MetricsPart, metrics_parts, metrics_served
from nixery_snap.nix_stores.command import NixStore
from nixery_snap.service import open_service
from nixery_snap.settings import Settings
from nixery_snap.tracing import traced


def serve_node(settings: Settings, started: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError, NixError."""
    [part] = metrics_parts(settings.metrics.listen)
    asyncio.run(_serve(settings, part, started))


async def _serve(settings: Settings, part: MetricsPart, started: Callable[[], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    node = settings.image_service
    options = ImageServiceOptions(
        listen=node.listen,
        containerd=node.containerd,
        gc_roots=settings.cache_path / "image-roots",
        snapshotter=node.snapshotter,
        registries=node.registries,
        certs_directory=Path(node.certs_directory),
        substituters=tuple(one.url for one in settings.substituters),
        group=node.group,
        shutdown_timeout=settings.limits.shutdown_timeout,
    )
    async with (
        open_service(settings, on_node=True) as service,
        metrics_served(part),
        traced(settings.tracing.endpoint, "nixery-snap-image-service"),
    ):
        parts = NodeParts(
            pipeline=service.shared.pipeline,
            grammar=service.grammar,
            blobs=service.shared.blobs,
            local=service.local,
            realiser=service.realiser,
            store_root=NixStore.parse(settings.nix.store).root,
        )
        await serve_image_service(parts, options, stop, started)
