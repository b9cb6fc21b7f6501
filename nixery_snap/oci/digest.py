"""Digests: algorithm and hex of some bytes as they are served (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from nixery_snap.errors import InvalidDigest

_HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[a-f0-9]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """`algorithm` is sha256 or sha512 when parsed; everything made here is sha256."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidDigest."""
        algorithm, _, hex_part = text.partition(":")
        length = _HEX_LENGTHS.get(algorithm)
        if length is None:
            raise InvalidDigest(text, f"it must begin with one of {', '.join(_HEX_LENGTHS)} and ':'")
        if len(hex_part) != length or not _HEX.fullmatch(hex_part):
            raise InvalidDigest(text, f"{algorithm} takes {length} lower-case hex digits")
        return cls(algorithm, hex_part)

    @classmethod
    def of(cls, content: bytes) -> Self:
        return cls("sha256", hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
