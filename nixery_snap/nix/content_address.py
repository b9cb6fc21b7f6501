"""Content addresses, and the store paths that follow from them (Nix manual, "Store Path Specification")."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import base32
from nixery_snap.nix.hashes import Hash
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import STORE_DIR, StorePath

_HASH_PART_SIZE: Final = 20  # bytes


class Method(StrEnum):
    """What the hash is of, as its notation begins."""

    TEXT = "text:"
    """The contents of the one file; may have references, not to itself."""
    FLAT = "fixed:"
    """The contents of the one file; has no references."""
    NAR = "fixed:r:"
    """The NAR, with the path's own hash part taken out of it; has references with sha256 only."""


@dataclass(frozen=True, slots=True)
class ContentAddress:
    """Such as `fixed:r:sha256:<nix base 32>`."""

    method: Method
    hash: Hash

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidFormat, also for what only newer versions of Nix know."""
        for method in (Method.NAR, Method.FLAT, Method.TEXT):
            if text.startswith(method):
                break
        else:
            raise InvalidFormat("content address", text, "it must begin with text: or fixed:")
        found = Hash.parse(text[len(method) :])
        if method is Method.TEXT and found.algorithm != "sha256":
            raise InvalidFormat("content address", text, "a text has its sha256")
        return cls(method, found)

    def __str__(self) -> str:
        return f"{self.method}{self.hash}"


def store_path(
    name: str, address: ContentAddress, references: Collection[StorePath] = (), self_reference: bool = False
) -> StorePath:
    """The path of what has that address; `references` are those to others. Raises InvalidFormat."""
    sha256 = address.hash.algorithm == "sha256"
    if address.method is Method.TEXT and not self_reference:
        kind, digest = "text", address.hash.value
    elif address.method is Method.NAR and sha256:
        kind, digest = "source", address.hash.value
    elif references or self_reference:
        raise InvalidFormat(
            "content address", str(address), "what has such an address has no such references"
        )
    else:
        recursive = "r:" if address.method is Method.NAR else ""
        inner = f"fixed:out:{recursive}{address.hash.algorithm}:{address.hash.value.hex()}:"
        kind, digest = "output:out", hashlib.sha256(inner.encode()).digest()
    parts = [kind, *sorted(map(str, references)), *(["self"] if self_reference else [])]
    text = f"{':'.join(parts)}:sha256:{digest.hex()}:{STORE_DIR}:{name}"
    return StorePath.from_base_name(f"{_hash_part(text)}-{name}")


def recomputes(info: PathInfo) -> bool:
    """Whether the content address of `info` gives its path and, through its NAR hash or `flat_hash`, its content.

    So it is False for what no signature can be done without: a self-reference, whose hash part is not in the
    address, and algorithms other than SHA-256. Their path could be right and their NAR hash a lie.
    """
    address = _address(info)
    if address is None or address.hash.algorithm != "sha256" or info.path in info.references:
        return False
    try:
        expected = store_path(info.path.name, address, info.references)
    except InvalidFormat:
        return False
    nar_hash_right = address.method is not Method.NAR or info.nar_hash == str(address.hash)
    return nar_hash_right and expected == info.path


def flat_hash(info: PathInfo) -> bytes | None:
    """The SHA-256 that the contents of the file at the root must have, where the content address says it."""
    address = _address(info)
    if address is None or address.method is Method.NAR or address.hash.algorithm != "sha256":
        return None
    return address.hash.value


def _address(info: PathInfo) -> ContentAddress | None:
    try:
        return ContentAddress.parse(info.content_address) if info.content_address else None
    except InvalidFormat:
        return None


def _hash_part(text: str) -> str:
    """SHA-256, folded to 160 bits."""
    folded = bytearray(_HASH_PART_SIZE)
    for place, byte in enumerate(hashlib.sha256(text.encode()).digest()):
        folded[place % _HASH_PART_SIZE] ^= byte
    return base32.encode(bytes(folded))
