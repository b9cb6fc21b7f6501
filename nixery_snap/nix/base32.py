"""Nix's base 32: its own alphabet, least significant bits first (Nix, src/libutil/hash.cc)."""

from __future__ import annotations

from typing import Final

from nixery_snap.errors import InvalidFormat

ALPHABET: Final = "0123456789abcdfghijklmnpqrsvwxyz"  # no e, o, u, t
_VALUES: Final = {letter: value for value, letter in enumerate(ALPHABET)}


def encode(content: bytes) -> str:
    """32 characters for 20 bytes, 52 for 32."""
    number = int.from_bytes(content, "little")
    length = (len(content) * 8 + 4) // 5
    return "".join(ALPHABET[number >> (5 * place) & 31] for place in range(length - 1, -1, -1))


def decode(text: str, size_bytes: int) -> bytes:
    """The `size_bytes` bytes that `text` stands for; raises InvalidFormat."""
    if len(text) != (size_bytes * 8 + 4) // 5:
        raise InvalidFormat(
            "Nix base 32", text, f"{size_bytes} bytes take {(size_bytes * 8 + 4) // 5} characters"
        )
    number = 0
    for letter in text:
        value = _VALUES.get(letter)
        if value is None:
            raise InvalidFormat("Nix base 32", text, f"{letter!r} is not in its alphabet")
        number = number << 5 | value
    if number >> (8 * size_bytes):
        raise InvalidFormat("Nix base 32", text, "its padding bits are not zero")
    return number.to_bytes(size_bytes, "little")
