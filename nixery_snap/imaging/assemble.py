"""Assembles an image of either format from packages and their closure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from nixery_snap.errors import ManifestTooLarge, UnmountablePath
from nixery_snap.imaging.forest import File, Folder, add_rootfs_extras, build_forest, forest_entries
from nixery_snap.imaging.layering import UNKNOWN_POPULARITY, Popularity, layer_groups
from nixery_snap.imaging.layers import Layer, LayerMaker
from nixery_snap.imaging.request import ImageFormat, ImageRequest
from nixery_snap.imaging.resolution import Resolution
from nixery_snap.imaging.resolver import Resolver
from nixery_snap.nix.file_tree import Directory
from nixery_snap.nix.path_info import Closure
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.image_config import ImageConfig
from nixery_snap.oci.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest
from nixery_snap.oci.media_types import OCI_CONFIG
from nixery_snap.ports import BlobStore, Package, Pin, StoreContents

log = structlog.get_logger()

# nix-snapshotter's annotations, on the layer's descriptor: one by one from its version 0.1 on, and from 0.3 on
# the path whose file lists them, which then counts alone.
NIX_LAYER: Final = "containerd.io/snapshot/nix-layer"
NIX_STORE_PATH: Final = "containerd.io/snapshot/nix-store-path."
NIX_CLOSURE: Final = "containerd.io/snapshot/nix-closure"

CA_BUNDLE: Final = "etc/ssl/certs/ca-bundle.crt"
MOUNTPOINT_FILE_MODE: Final = 0o555


class Assembler:
    """`max_layers` counts the forest's layer too; `names_paths`: one by one, even beside a closure-info path."""

    def __init__(
        self,
        contents: StoreContents,
        blobs: BlobStore,
        layers: LayerMaker,
        max_layers: int,
        popularity: Popularity = UNKNOWN_POPULARITY,
        *,
        names_paths: bool = True,
    ) -> None:
        self._contents = contents
        self._blobs = blobs
        self._layers = layers
        self._max_layers = max_layers
        self._popularity = popularity
        self._names_paths = names_paths

    async def assemble(
        self,
        request: ImageRequest,
        pin: Pin,
        resolution: Resolution,
        closure: Closure,
        closure_info: StorePath | None = None,
    ) -> Manifest:
        """The manifest of an image all of whose blobs are stored; `closure_info` lists `closure`.

        Raises ImageError.
        """
        resolver = Resolver(self._contents, closure)
        outputs = _outputs_by_precedence(resolution.packages)
        if request.format is ImageFormat.SNAPSHOTTER:
            await resolver.roots(closure)  # all at once, with those of the outputs
        forest, conflicts = await build_forest(resolver, outputs)
        for conflict in conflicts:
            log.info("forest-conflict", path=conflict.path, winner=conflict.winner, loser=conflict.loser)
        has_ca_bundle = await _resolves(resolver, forest, CA_BUNDLE)
        add_rootfs_extras(forest)

        if request.format is ImageFormat.SNAPSHOTTER:
            layers = [await self._mountpoint_layer(resolver, forest, closure, closure_info)]
            created_by = ["nixery-snap: store paths (mounted by the node) and forest"]
        else:
            groups = await asyncio.to_thread(
                layer_groups, closure, outputs, self._max_layers - 1, self._popularity
            )
            packed = await asyncio.gather(
                *(
                    self._layers.from_store(tuple(closure[path] for path in group.paths), request.compression)
                    for group in groups
                )
            )
            top = await self._layers.from_entries(forest_entries(forest), request.compression)
            layers = [(layer, layer.descriptor()) for layer in (*packed, top)]
            created_by = [f"nixery-snap: {_summary(group.paths)}" for group in groups]
            created_by.append("nixery-snap: forest")

        config = bytes(
            ImageConfig(
                architecture=request.architecture,
                env=("PATH=/bin:/sbin", *([f"SSL_CERT_FILE=/{CA_BUNDLE}"] if has_ca_bundle else [])),
                cmd=_cmd(request, resolution.requested),
                diff_ids=tuple(layer.diff_id for layer, _ in layers),
                created_by=tuple(created_by),
            )
        )
        await self._blobs.put(config)
        manifest = Manifest(
            Descriptor.of(OCI_CONFIG, config),
            tuple(descriptor for _, descriptor in layers),
            _annotations(request, pin, resolution.packages),
        )
        if (size := len(bytes(manifest))) > MAX_MANIFEST_BYTES:
            raise ManifestTooLarge(size, MAX_MANIFEST_BYTES, len(closure))
        return manifest

    async def _mountpoint_layer(
        self, resolver: Resolver, forest: Folder, closure: Closure, closure_info: StorePath | None
    ) -> tuple[Layer, Descriptor]:
        """One layer: an empty mountpoint of the right kind per store path, and the forest."""
        annotations = {NIX_LAYER: "true"}
        if closure_info is not None:
            annotations[NIX_CLOSURE] = str(closure_info)
        roots = await resolver.roots(closure)
        others = [path for path, root in roots.items() if not isinstance(root, Directory)]
        mountpoints = dict(
            zip(others, await asyncio.gather(*(_mountpoint(resolver, path) for path in others)), strict=True)
        )
        for number, path in enumerate(closure):
            forest.add(str(path).strip("/"), mountpoints.get(path) or Folder())
            if self._names_paths or closure_info is None:
                annotations[f"{NIX_STORE_PATH}{number}"] = str(path)
        layer = await self._layers.from_entries(forest_entries(forest))
        return layer, layer.descriptor(annotations)


async def _mountpoint(resolver: Resolver, path: StorePath) -> Folder | File:
    """What a bind mount of `path` needs below it: the kind of what the kernel sees after following links."""
    found = await resolver.follow(str(path))
    if found is None:
        # A node would mount what stands there on ITS file system, if anything.
        raise UnmountablePath(str(path), "it is a link to nothing, or to a place outside its closure")
    return Folder() if isinstance(found[1], Directory) else File(b"", MOUNTPOINT_FILE_MODE)


def _outputs_by_precedence(packages: Sequence[Package]) -> tuple[StorePath, ...]:
    """Requested outputs, winners of conflicts first: by meta.priority, then by name; each once."""
    ranked = sorted(packages, key=lambda package: (package.priority, package.attribute))
    return tuple(dict.fromkeys(path for package in ranked for path in package.outputs.values()))


async def _resolves(resolver: Resolver, forest: Folder, path: str) -> bool:
    """Whether `path` is there in an image with this forest."""
    node: object = forest
    parts = path.split("/")
    for number, part in enumerate(parts):
        if not isinstance(node, Folder):
            target = "/".join([getattr(node, "target", ""), *parts[number:]])
            return await resolver.follow(target) is not None
        node = node.children.get(part)
    return node is not None


def _cmd(request: ImageRequest, requested: Sequence[Package]) -> tuple[str, ...]:
    if request.shell:
        return ("bash",)
    programs = {package.drv_path: package.main_program for package in requested}
    program = next(iter(programs.values()))
    return (program,) if len(programs) == 1 and program else ()


def _annotations(request: ImageRequest, pin: Pin, packages: Sequence[Package]) -> dict[str, str]:
    """OCI image-spec, annotations.md, "Pre-Defined Annotation Keys"."""
    licenses = sorted({spdx for package in packages for spdx in package.licenses})
    annotations = {
        "org.opencontainers.image.title": request.title,
        "org.opencontainers.image.revision": pin.revision,
    }
    if pin.url:
        annotations["org.opencontainers.image.source"] = pin.url
    if licenses:
        annotations["org.opencontainers.image.licenses"] = " AND ".join(licenses)
    return annotations


def _summary(paths: Sequence[StorePath]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(path.name for path in paths[:3]) + more
