"""The image service as a program: `python -m tests.support.image_service --config FILE --listen … --containerd …`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import signal
from collections.abc import Collection
from pathlib import Path

from nixery_snap.image_service.options import ImageServiceOptions
from nixery_snap.image_service.path_realiser import PathRealiser
from nixery_snap.image_service.server import NodeParts, serve_image_service
from nixery_snap.log import configure_logging
from nixery_snap.nix.path_info import Closure
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.nix_stores.local_store import StoreDatabase
from nixery_snap.nix_stores.path_info_command import LocalPathInfos, NixPathInfos
from nixery_snap.ports import Progress
from nixery_snap.service import open_service
from nixery_snap.settings import Settings, load_settings


class NothingPublished:
    """Implements the port Publisher for a node: what it makes is in its own store, where the image service puts it."""

    def closure_info(self, closure: Closure) -> None:
        return None

    async def offer(self, closure: Closure, progress: Progress) -> None:
        return

    async def publish(self, closure: Closure, progress: Progress) -> None:
        return


def nix_options(settings: Settings) -> dict[str, str]:
    urls = [one.url for one in settings.substituters]
    keys = [key for one in settings.substituters for key in one.public_keys]
    return {
        "extra-substituters": " ".join(urls),
        "extra-trusted-public-keys": " ".join(keys),
        "require-sigs": "true",
        "connect-timeout": "5",
    }


async def main(
    settings: Settings, listen: str, containerd: str, certs: Path, registries: Collection[str]
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = NixStore.parse(settings.nix.store)
    async with open_service(settings) as service:
        pipeline = service.pipeline
        pipeline._steps = dataclasses.replace(pipeline._steps, publisher=NothingPublished())
        nix = NixCommand(store, settings.cache_path / "home", settings.nix.options)
        options = ImageServiceOptions(
            listen=listen,
            containerd=containerd,
            gc_roots=settings.cache_path / "image-roots",
            registries=tuple(registries),
            certs_directory=certs,
            substituters=tuple(one.url for one in settings.substituters),
            shutdown_timeout=5,
        )
        parts = NodeParts(
            pipeline=pipeline,
            grammar=service.grammar,
            blobs=service.blobs,
            local=LocalPathInfos(StoreDatabase(store.database), NixPathInfos(nix)),
            realiser=PathRealiser(
                nix,
                settings.cache_path / "gcroots",
                store.uri,
                settings.nix.build_timeout,
                lambda: nix_options(settings),
            ),
            store_root=store.root,
        )
        await serve_image_service(parts, options, stop, lambda: None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--containerd", required=True)
    parser.add_argument("--certs", type=Path, default=Path("/etc/containerd/certs.d"))
    parser.add_argument("--registry", action="append", default=[])
    given = parser.parse_args()
    loaded = load_settings(given.config, {})
    configure_logging(loaded.log_format)
    asyncio.run(main(loaded, given.listen, given.containerd, given.certs, given.registry))
