"""Nix's base 32: its own alphabet, least significant bits first (Nix, src/libutil/hash.cc)."""

from __future__ import annotations

from typing import Final

from nixery_snap.errors import InvalidFormat

ALPHABET: Final = "0123456789abcdfghijklmnpqrsvwxyz"  # no e, o, u, t
_PAIRS: Final = tuple(high + low for high in ALPHABET for low in ALPHABET)
_PYTHON_DIGITS: Final = bytes(
    # What is not in the alphabet becomes what `int` refuses.
    b"0123456789abcdefghijklmnopqrstuv"[ALPHABET.index(letter)] if letter in ALPHABET else ord("!")
    for letter in map(chr, range(256))
)


def encode(content: bytes) -> str:
    """32 characters for 20 bytes, 52 for 32."""
    number = int.from_bytes(content, "little")
    length = (len(content) * 8 + 4) // 5
    pairs = [_PAIRS[number >> place & 1023] for place in range(5 * (length + length % 2) - 10, -1, -10)]
    return "".join(pairs)[length % 2 :]


def decode(text: str, size_bytes: int) -> bytes:
    """The `size_bytes` bytes that `text` stands for; raises InvalidFormat."""
    if len(text) != (size_bytes * 8 + 4) // 5:
        raise InvalidFormat(
            "Nix base 32", text, f"{size_bytes} bytes take {(size_bytes * 8 + 4) // 5} characters"
        )
    try:
        number = int(text.encode("ascii").translate(_PYTHON_DIGITS), 32) if text else 0
        return number.to_bytes(size_bytes, "little")
    except OverflowError:
        raise InvalidFormat("Nix base 32", text, "its padding bits are not zero") from None
    except ValueError:  # UnicodeEncodeError is one
        strange = next(letter for letter in text if letter not in ALPHABET)
        raise InvalidFormat("Nix base 32", text, f"{strange!r} is not in its alphabet") from None
