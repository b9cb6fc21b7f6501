"""Image indexes: one image for several platforms (OCI image-spec, image-index.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from nixery_snap.errors import InvalidFormat
from nixery_snap.oci import canonical_json
from nixery_snap.oci.manifest import Descriptor
from nixery_snap.oci.media_types import OCI_INDEX


@dataclass(frozen=True, slots=True)
class Index:
    """`manifests` by OCI's (Go's) word for the architecture; all are for Linux."""

    manifests: Mapping[str, Descriptor]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises InvalidFormat."""
        try:
            value = json.loads(content)
            if value["schemaVersion"] != 2 or value["mediaType"] != OCI_INDEX:
                raise InvalidFormat("index", value["mediaType"], f"it must be {OCI_INDEX} of version 2")
            return cls(
                {
                    str(entry["platform"]["architecture"]): Descriptor.from_json(entry)
                    for entry in value["manifests"]
                },
                {str(k): str(v) for k, v in value.get("annotations", {}).items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise InvalidFormat("index", content[:200], repr(error)) from error

    def __bytes__(self) -> bytes:
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                descriptor.to_json() | {"platform": {"architecture": architecture, "os": "linux"}}
                for architecture, descriptor in self.manifests.items()
            ],
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return canonical_json.encode(value)
