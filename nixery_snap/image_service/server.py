"""Runs the image service: its socket, its parts, its end."""

from __future__ import annotations

import asyncio
import grp
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc.aio
import structlog

from nixery_snap.errors import ContainerdError, SettingsError
from nixery_snap.image_service.builder import Builder
from nixery_snap.image_service.containerd import Containerd
from nixery_snap.image_service.gc_roots import GcRoots
from nixery_snap.image_service.leases import Leases
from nixery_snap.image_service.node_images import NodeImages
from nixery_snap.image_service.notify import notified
from nixery_snap.image_service.options import ImageServiceOptions, node_architecture
from nixery_snap.image_service.prefetch import Prefetcher
from nixery_snap.image_service.registry_client import RegistryClient
from nixery_snap.image_service.registry_images import RegistryImages
from nixery_snap.image_service.servicer import ImageService, sweep
from nixery_snap.imaging.pipeline import Pipeline
from nixery_snap.imaging.request import NameGrammar
from nixery_snap.nix_stores.realiser import NixRealiser
from nixery_snap.ports import BlobStore, PathInfoSource

log = structlog.get_logger()

_SWEEP_SECONDS: Final = 600  # images can be removed behind our back
_RETRY_SECONDS: Final = 2
_THOROUGH_SWEEPS: Final = 6
_SOCKET_MODE: Final = 0o660


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What the image service shares with the registry. `local` knows what is in the Nix store at `store_root`."""

    pipeline: Pipeline
    grammar: NameGrammar
    blobs: BlobStore
    local: PathInfoSource
    realiser: NixRealiser
    store_root: Path


async def serve_image_service(
    parts: NodeParts, options: ImageServiceOptions, stop: asyncio.Event, started: Callable[[], None]
) -> None:
    """Serve until `stop`; `started` is called once requests are taken. Raises SettingsError."""
    containerd = Containerd(options.containerd)
    roots = GcRoots(options.gc_roots, parts.store_root / "nix/var/nix")
    prefetcher = Prefetcher(parts.local, parts.realiser, roots, options.substituters)
    leases = Leases(containerd)
    node_images = NodeImages(
        containerd,
        prefetcher,
        roots,
        leases,
        parts.pipeline,
        parts.grammar,
        parts.blobs,
        parts.store_root,
        options.snapshotter,
    )
    registry = RegistryClient(options.certs_directory, node_architecture())
    sweeping = Sweeper(containerd, leases, roots)
    service = ImageService(
        containerd,
        node_images,
        RegistryImages(registry, prefetcher, roots, options.registries),
        prefetcher,
        Builder(containerd, prefetcher, parts.realiser, roots),
        sweeping.soon,
        sweeping.soon_and_thoroughly,
    )
    server = grpc.aio.server(
        options=(("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    )
    server.add_generic_rpc_handlers((service,))
    _bind(server, options)
    await server.start()
    sweeper = asyncio.ensure_future(sweeping.run())
    try:
        async with notified():
            log.info("serving", listen=options.listen, containerd=options.containerd, pid=os.getpid())
            started()
            await stop.wait()
            log.info("stopping", timeout_seconds=options.shutdown_timeout)
    finally:
        sweeper.cancel()
        await server.stop(options.shutdown_timeout)
        given_up = await node_images.drain(0) + await prefetcher.drain(0)
        await registry.close()
        await containerd.close()
        options.socket.unlink(missing_ok=True)
        log.info("stopped", pulls_given_up=given_up)


class Sweeper:
    """Removes links of images that are gone: at start, when told, and now and then."""

    def __init__(self, containerd: Containerd, leases: Leases, roots: GcRoots) -> None:
        self._containerd = containerd
        self._leases = leases
        self._roots = roots
        self._wanted = asyncio.Event()
        self._thorough = 0

    def soon(self) -> None:
        self._wanted.set()

    def soon_and_thoroughly(self) -> None:
        """containerd cleans up first, which it does by itself only when an image is removed.

        Several times, with longer and longer waits: it may be a minute before it lets go of what it was doing.
        """
        self._thorough = _THOROUGH_SWEEPS
        self._wanted.set()

    async def run(self) -> None:
        while True:
            self._wanted.clear()
            wait_seconds = _SWEEP_SECONDS
            try:
                if self._thorough:
                    await self._leases.collect()
                    self._thorough -= 1
                await sweep(self._containerd, self._leases, self._roots)
                if self._thorough:
                    wait_seconds = _RETRY_SECONDS << (_THOROUGH_SWEEPS - 1 - self._thorough)
            except ContainerdError as error:
                log.info("not-swept", reason=str(error))
                wait_seconds = _RETRY_SECONDS
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._wanted.wait()
            except TimeoutError:
                pass


def _bind(server: grpc.aio.Server, options: ImageServiceOptions) -> None:
    """The socket is nobody else's before it has its mode and group."""
    path = options.socket
    before = os.umask(0o022)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.umask(0o777 & ~_SOCKET_MODE)
        server.add_insecure_port(options.listen)
        if options.group:
            os.chown(path, -1, grp.getgrnam(options.group).gr_gid)
    except (OSError, RuntimeError) as error:
        raise SettingsError("image_service.listen", f"cannot listen on {options.listen}: {error}") from error
    except KeyError:
        raise SettingsError("image_service.group", f"there is no group {options.group}") from None
    finally:
        os.umask(before)
