"""An image that is there, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from nixery_snap.imaging.resolution import Resolution
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import Pin


class Outcome(IntEnum):
    """What there was to do for an image; the greater, the more."""

    HIT = 0
    EVALUATED = 1
    REALISED = 2


@dataclass(frozen=True, slots=True)
class Image:
    """An assembled image: its manifest is stored under `digest`, in OCI's media types."""

    digest: Digest
    architecture: str
    pin: Pin
    key: str
    """Of its record."""
    record: Mapping[str, Any]
    """How it came about, as JSON; read when somebody wants to know."""
    outcome: Outcome = field(default=Outcome.HIT, compare=False)

    @property
    def resolution(self) -> Resolution:
        return Resolution.from_json(self.record["resolution"])

    @property
    def closure(self) -> tuple[tuple[StorePath, int], ...]:
        """Every store path with its nar_size."""
        return tuple((StorePath.parse(path), nar_size) for path, nar_size in self.record["closure"])

    @property
    def nar_bytes(self) -> int:
        """Of the closure."""
        return sum(nar_size for _, nar_size in self.record["closure"])
