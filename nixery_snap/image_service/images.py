"""Images in containerd after an import: named as the kubelet asked for them, and seen by its CRI."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty

from nixery_snap.errors import ContainerdRefused, InvalidArchive, SnapshotterNotConfigured
from nixery_snap.image_service.containerd import Containerd, is_status
from nixery_snap.image_service.generated.containerd_services_images_pb2 import (
    CreateImageRequest,
    DeleteImageRequest,
    GetImageRequest,
    GetImageResponse,
    Image,
    UpdateImageRequest,
)
from nixery_snap.image_service.generated.containerd_services_introspection_pb2 import (
    PluginsRequest,
    PluginsResponse,
)
from nixery_snap.image_service.generated.containerd_types_pb2 import Descriptor
from nixery_snap.image_service.generated.cri_pb2 import ImageSpec, ImageStatusRequest, ImageStatusResponse
from nixery_snap.image_service.references import NodeReference
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import MAX_MANIFEST_BYTES

CRI_LABELS: Final = {"io.cri-containerd.image": "managed"}
_IMAGES: Final = "/containerd.services.images.v1.Images"
_SEEN_WITHIN_SECONDS: Final = 20


async def check_snapshotter(containerd: Containerd, snapshotter: str, architecture: str) -> None:
    """Raises SnapshotterNotConfigured when there is none of that name."""
    answer = await containerd.call(
        "/containerd.services.introspection.v1.Introspection/Plugins",
        PluginsRequest(filters=["type==io.containerd.snapshotter.v1"]),
        PluginsResponse,
        "tell its plugins",
    )
    if snapshotter not in {plugin.id for plugin in answer.plugins}:
        raise not_configured(snapshotter, "it has no snapshotter of that name", architecture)


def not_configured(snapshotter: str, reason: str, architecture: str) -> SnapshotterNotConfigured:
    lines = f"""\
[proxy_plugins.{snapshotter}]
type = "snapshot"
address = "/run/nix-snapshotter/nix-snapshotter.sock"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/{architecture}"
snapshotter = "{snapshotter}\""""
    return SnapshotterNotConfigured(snapshotter, reason, lines)


async def settle(
    containerd: Containerd, reference: NodeReference, snapshotter: str, architecture: str
) -> Digest:
    """Make the imported image what a pull would have made of it; the digest of its config, which is its id.

    Raises ContainerdError, InvalidArchive.
    """
    name = reference.stored_name
    answer = await containerd.call(
        f"{_IMAGES}/Get", GetImageRequest(name=name), GetImageResponse, f"find the image {name}"
    )
    target, manifest = await _manifest(containerd, answer.image.target, name, architecture)
    config = Digest.parse(manifest["config"]["digest"])
    labels = await containerd.content_labels(config) or {}
    if f"containerd.io/gc.ref.snapshot.{snapshotter}" not in labels:
        # Without snapshots a container would start from one that never saw the annotations.
        await _delete(containerd, name)
        raise not_configured(snapshotter, "its Transfer service does not unpack with it", architecture)
    last = reference.with_digest(Digest.parse(target.digest))
    for one in (name, str(config), last):
        await _put(containerd, Image(name=one, labels=CRI_LABELS, target=target))
    for one in (name, last):  # the kubelet removes only what CRI knows
        await _seen(containerd, one, config)
    return config


async def _manifest(
    containerd: Containerd, target: Descriptor, name: str, architecture: str
) -> tuple[Descriptor, Mapping[str, Any]]:
    """What `target`, an index or a manifest, has for this node."""
    try:
        for _ in range(3):
            value = json.loads(await containerd.content(Digest.parse(target.digest), MAX_MANIFEST_BYTES))
            if "config" in value:
                return target, value
            entries = value["manifests"]
            fitting = [
                entry
                for entry in entries
                if (entry.get("platform") or {}).get("architecture", architecture) == architecture
            ]
            entry = fitting[0]
            target = Descriptor(media_type=entry["mediaType"], digest=entry["digest"], size=entry["size"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidArchive(name, f"its manifest cannot be read: {error!r}") from error
    raise InvalidArchive(name, "its indexes have too many levels")


async def _put(containerd: Containerd, image: Image) -> None:
    step = f"name the image {image.name}"
    try:
        await containerd.call(f"{_IMAGES}/Create", CreateImageRequest(image=image), Empty, step)
    except ContainerdRefused as error:
        if not is_status(error, grpc.StatusCode.ALREADY_EXISTS):
            raise
        await containerd.call(f"{_IMAGES}/Update", UpdateImageRequest(image=image), Empty, step)


async def _delete(containerd: Containerd, name: str) -> None:
    await containerd.call(
        f"{_IMAGES}/Delete", DeleteImageRequest(name=name, sync=True), Empty, f"delete the image {name}"
    )


async def _seen(containerd: Containerd, name: str, config: Digest) -> None:
    """containerd's CRI hears of new images by its own events: wait until it has."""
    deadline = time.monotonic() + _SEEN_WITHIN_SECONDS
    request = ImageStatusRequest(image=ImageSpec(image=name))
    while True:
        answer = await containerd.call(
            "/runtime.v1.ImageService/ImageStatus", request, ImageStatusResponse, f"show the image {name}"
        )
        if answer.image.id == str(config):
            return
        if time.monotonic() > deadline:
            raise ContainerdRefused(f"show the image {name}", "its CRI plugin does not see what was imported")
        await asyncio.sleep(0.02)
