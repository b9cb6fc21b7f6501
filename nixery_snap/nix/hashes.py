"""Hashes in the notations that Nix reads (Nix, src/libutil/hash.cc): base 32, base 16, base 64 and SRI."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final, Self

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import base32

SIZES: Final = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}


@dataclass(frozen=True, slots=True)
class Hash:
    """The algorithm's name, a key of SIZES, and the hash's bytes."""

    algorithm: str
    value: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `<algorithm>:<base 32, 16 or 64>` or `<algorithm>-<base 64>`; raises InvalidFormat."""
        algorithm, separator, encoded = text.partition(":")
        if not separator:
            algorithm, separator, encoded = text.partition("-")
        size_bytes = SIZES.get(algorithm)
        if not separator or size_bytes is None:
            raise InvalidFormat("hash", text, f"it must begin with {', '.join(SIZES)} and ':' or '-'")
        if separator == ":" and len(encoded) == (size_bytes * 8 + 4) // 5:
            return cls(algorithm, base32.decode(encoded, size_bytes))
        try:
            if separator == ":" and len(encoded) == 2 * size_bytes:
                return cls(algorithm, binascii.unhexlify(encoded))
            value = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise InvalidFormat("hash", text, f"not an encoding of {size_bytes} bytes") from None
        # Without the second comparison the last letter could hide bits, so one hash had several texts.
        if len(value) != size_bytes or base64.b64encode(value).decode() != encoded:
            raise InvalidFormat("hash", text, f"{algorithm} has {size_bytes} bytes")
        return cls(algorithm, value)

    def __str__(self) -> str:
        return f"{self.algorithm}:{base32.encode(self.value)}"


def sha256_text(text: str) -> str:
    """`text` as `sha256:<base 32>`, in which path infos have their hashes; raises InvalidFormat."""
    found = Hash.parse(text)
    if found.algorithm != "sha256":
        raise InvalidFormat("hash", text, "only sha256 will do here")
    return str(found) if len(text) != len("sha256:") + 52 else text
