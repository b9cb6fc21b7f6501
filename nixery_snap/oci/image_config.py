"""The image config: what a runtime starts and how (OCI image-spec, config.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nixery_snap.oci import canonical_json
from nixery_snap.oci.digest import Digest

# One fixed moment for everything made, so that the same request gives the same bytes.
CREATED = "1970-01-01T00:00:01Z"


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """`diff_ids` from the lowest layer up, of the uncompressed tars; `created_by` one line a layer."""

    architecture: str
    env: tuple[str, ...]
    cmd: tuple[str, ...]
    diff_ids: tuple[Digest, ...]
    created_by: tuple[str, ...]
    os: str = "linux"

    def __bytes__(self) -> bytes:
        config: dict[str, Any] = {"Env": list(self.env)}
        if self.cmd:
            config["Cmd"] = list(self.cmd)
        return canonical_json.encode(
            {
                "architecture": self.architecture,
                "os": self.os,
                "created": CREATED,
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in self.diff_ids]},
                "history": [{"created": CREATED, "created_by": line} for line in self.created_by],
            }
        )
