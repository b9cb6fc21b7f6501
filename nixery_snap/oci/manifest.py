"""Descriptors and image manifests (OCI image-spec, descriptor.md and manifest.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from nixery_snap.errors import InvalidFormat
from nixery_snap.oci import canonical_json
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.media_types import DOCKER_EQUIVALENT, DOCKER_MANIFEST, OCI_MANIFEST

# containerd refuses larger ones; most registries already stop at 4 MiB.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at content: `digest` and `size_bytes` are of the bytes as served, compressed for a layer."""

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, media_type: str, content: bytes) -> Self:
        return cls(media_type, Digest.of(content), len(content))

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises InvalidFormat."""
        try:
            size = value["size"]
            if type(size) is not int or size < 0:
                raise InvalidFormat("descriptor", value, "size must be a whole number of bytes")
            return cls(
                str(value["mediaType"]),
                Digest.parse(value["digest"]),
                size,
                {str(k): str(v) for k, v in value.get("annotations", {}).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidFormat(
                "descriptor", value, f"needs mediaType, digest and size: {error!r}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size_bytes,
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return value


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform; `layers` from the lowest to the topmost."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = OCI_MANIFEST

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises InvalidFormat."""
        try:
            value = json.loads(content)
            if value["schemaVersion"] != 2:
                raise InvalidFormat("manifest", value["schemaVersion"], "schemaVersion must be 2")
            return cls(
                Descriptor.from_json(value["config"]),
                tuple(map(Descriptor.from_json, value["layers"])),
                {str(k): str(v) for k, v in value.get("annotations", {}).items()},
                str(value.get("mediaType", OCI_MANIFEST)),
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise InvalidFormat("manifest", content[:200], repr(error)) from error

    def __bytes__(self) -> bytes:
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        # Docker's schema 2 has no annotations on the manifest.
        if self.annotations and self.media_type != DOCKER_MANIFEST:
            value["annotations"] = dict(self.annotations)
        return canonical_json.encode(value)

    def to_docker(self) -> Self:
        """The same image under Docker's media types; config and layers stay the same blobs."""
        return replace(
            self,
            media_type=DOCKER_EQUIVALENT[self.media_type],
            config=_to_docker(self.config),
            layers=tuple(map(_to_docker, self.layers)),
        )


def _to_docker(descriptor: Descriptor) -> Descriptor:
    return replace(descriptor, media_type=DOCKER_EQUIVALENT[descriptor.media_type])
