"""Reads tar archives from anywhere as a stream, trusting nothing (POSIX.1-2017, pax; GNU's long names and numbers).

The standard library's reader takes headers of any size into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from nixery_snap.errors import InvalidFormat

_BLOCK: Final = 512
_PIECE_BYTES: Final = 256 * 1024
_MAX_HEADER_BYTES: Final = 1024 * 1024
_GNU_NAMES: Final = {b"L": "path", b"K": "linkpath"}


class Stream(Protocol):
    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "symbolic link"
    HARD_LINK = "hard link"


@dataclass(frozen=True, slots=True)
class TarEntry:
    """`name` and `target` as they stand there, slashes at the end and all; undecodable bytes are surrogates."""

    kind: Kind
    name: str
    target: str
    executable: bool
    size_bytes: int
    """Of the content; 0 but for files."""


_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"5": Kind.DIRECTORY,
    b"2": Kind.LINK,
    b"1": Kind.HARD_LINK,
}


class TarReader:
    """Iterates over the entries; `content` reads that of the one that came last. Both raise InvalidFormat."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[TarEntry]:
        extended: dict[str, str] = {}
        while (header := self._header()) is not None:
            kind, size = header[156:157], _number(header[124:136], "size")
            if kind in _GNU_NAMES or kind in {b"x", b"g"}:
                if size > _MAX_HEADER_BYTES:
                    raise _invalid(header[:100], f"a header of {size} bytes")
                self._expect(size)
                text = b"".join(self.content())
                if kind == b"x":
                    extended |= _pax(text)
                elif kind != b"g":  # what is said of all entries is no name
                    extended[_GNU_NAMES[kind]] = _text(text)
                continue
            yield self._entry(header, kind, size, extended)
            extended = {}

    def content(self) -> Iterator[bytes]:
        while self._left:
            piece = self._exactly(min(self._left, _PIECE_BYTES))
            self._left -= len(piece)
            yield piece

    def _entry(self, header: bytes, kind: bytes, size: int, extended: dict[str, str]) -> TarEntry:
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345] != 0:
            name = f"{_text(header[345:500])}/{name}"
        name = extended.get("path", name)
        known = _KINDS.get(kind)
        if known is None:
            raise _invalid(name, f"an entry of type {kind!r}: only files, directories and links are allowed")
        if known is Kind.FILE and name.endswith("/"):  # as archives older than POSIX say it
            known = Kind.DIRECTORY
        if "size" in extended:
            size = _decimal(extended["size"], name)
        self._expect(size if known is Kind.FILE else 0)
        executable = bool(_number(header[100:108], "mode") & 0o100)
        return TarEntry(known, name, extended.get("linkpath", _text(header[157:257])), executable, self._left)

    def _expect(self, size: int) -> None:
        self._left, self._padding = size, -size % _BLOCK

    def _header(self) -> bytes | None:
        for _ in self.content():
            pass
        self._exactly(self._padding)
        self._padding = 0
        header = self._exactly(_BLOCK)
        if not any(header):  # one block of zeros ends it, as two do
            return None
        unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if _number(header[148:156], "checksum") != unsigned:
            raise _invalid(header[:100], "it is no tar header, or a damaged one")
        return header

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._stream.read(size)
            if not piece:
                raise _invalid(b"", "it ends too early")
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _invalid(value: object, reason: str) -> InvalidFormat:
    return InvalidFormat("tar archive", value, reason)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes, what: str) -> int:
    """Octal digits, or GNU's big-endian binary behind a first byte of 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip()
    if digits and not digits.strip(b"01234567"):
        return int(digits, 8)
    if not digits and what == "mode":
        return 0
    raise _invalid(field, f"its {what} is no number")


def _decimal(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise _invalid(name, "its size is no number")
    return int(text)


def _pax(text: bytes) -> dict[str, str]:
    """Records `<length> <key>=<value>\\n`, where the length counts all of the record."""
    found: dict[str, str] = {}
    start = 0
    while start < len(text):
        digits = text[start : start + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = text[start : start + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or record[-1:] != b"\n":
            raise _invalid(text[start : start + 100], "a pax record is malformed")
        if key.startswith(b"GNU.sparse."):
            raise _invalid(key, "sparse files are not allowed")
        if key in {b"path", b"linkpath", b"size"}:
            found[key.decode()] = _text(value)
        start += length
    return found
