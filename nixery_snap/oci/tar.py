"""A deterministic writer of layer tars (POSIX.1-2017, pax, "ustar Interchange Format").

Same entries, same bytes: owner 0:0, one fixed mtime, no user names, extended (pax) headers only for what
the ustar fields cannot hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

BLOCK_BYTES: Final = 512
MTIME: Final = 1  # as in a Nix store; 0 makes some tools warn of an implausibly old file
END: Final = bytes(2 * BLOCK_BYTES)
_NUMBERS: Final = b"0000000\0" * 2
_MTIME_FIELD: Final = b"%011o\0" % MTIME
_MAGIC: Final = b"ustar\x0000"
# The checksum is over the block with blanks in its own place; these bytes are the same in every header.
_FIXED_SUM: Final = sum(_NUMBERS * 2 + _MTIME_FIELD + b" " * 8 + _MAGIC)
_MAX_USTAR_SIZE: Final = 0o77777777777  # 8 GiB - 1: eleven octal digits


class EntryType(Enum):
    """The values are ustar's type flags."""

    REGULAR = b"0"
    SYMLINK = b"2"
    DIRECTORY = b"5"


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One member. `name` is relative to the root, without leading or trailing slash."""

    name: bytes
    type: EntryType
    mode: int
    size_bytes: int = 0
    target: bytes = b""

    @classmethod
    def directory(cls, name: bytes, mode: int = 0o755) -> TarEntry:
        return cls(name, EntryType.DIRECTORY, mode)

    @classmethod
    def symlink(cls, name: bytes, target: bytes) -> TarEntry:
        return cls(name, EntryType.SYMLINK, 0o777, target=target)

    @classmethod
    def regular(cls, name: bytes, size_bytes: int, mode: int = 0o644) -> TarEntry:
        return cls(name, EntryType.REGULAR, mode, size_bytes)


def header(entry: TarEntry) -> bytes:
    """The header blocks of one member, an extended header in front where one is needed."""
    name = entry.name + b"/" if entry.type is EntryType.DIRECTORY else entry.name
    extended: list[tuple[bytes, bytes]] = []
    split = _split(name)
    if split is None or not name.isascii():
        extended.append((b"path", name))
    if len(entry.target) > 100 or not entry.target.isascii():
        extended.append((b"linkpath", entry.target))
    if entry.size_bytes > _MAX_USTAR_SIZE:
        extended.append((b"size", b"%d" % entry.size_bytes))
    prefix, base = split or (b"", name[:100])
    size = min(entry.size_bytes, _MAX_USTAR_SIZE)
    ustar = _ustar(base, prefix, entry.mode, size, entry.type.value, entry.target[:100])
    if not extended:
        return ustar
    records = b"".join(_pax_record(key, value) for key, value in extended)
    pax = _ustar(b"PaxHeaders/entry", b"", 0o644, len(records), b"x", b"")
    return pax + records + padding(len(records)) + ustar


def padding(size_bytes: int) -> bytes:
    """The zeros that fill up the last block of a member's content."""
    return bytes(-size_bytes % BLOCK_BYTES)


def archive(entries: Iterable[tuple[TarEntry, Iterable[bytes]]]) -> Iterator[bytes]:
    """Members in the given order, without the end-of-archive marker `END`.

    The chunks of each member must add up to its `size_bytes`, else ValueError: a file that changes while it
    is packed must not shift everything behind it.
    """
    for entry, content in entries:
        yield header(entry)
        written = 0
        for chunk in content:
            written += len(chunk)
            yield chunk
        if written != entry.size_bytes:
            raise ValueError(f"{entry.name!r} has {written} bytes, its header says {entry.size_bytes}")
        if written % BLOCK_BYTES:
            yield padding(written)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, name) as ustar stores them, or None when the name fits neither in one nor in two fields."""
    if len(name) <= 100:
        return b"", name
    cut = name.find(b"/", len(name) - 101, len(name) - 1)
    if cut < 1 or cut > 155:
        return None
    return name[:cut], name[cut + 1 :]


def _ustar(name: bytes, prefix: bytes, mode: int, size: int, flag: bytes, target: bytes) -> bytes:
    mode_field, size_field = b"%07o\0" % mode, b"%011o\0" % size
    checksum = _FIXED_SUM + sum(b"".join((name, prefix, target, mode_field, size_field, flag)))
    return b"".join(
        (
            name.ljust(100, b"\0"),
            mode_field,
            _NUMBERS,  # uid, gid
            size_field,
            _MTIME_FIELD,
            b"%06o\0 " % checksum,
            flag,
            target.ljust(100, b"\0"),
            _MAGIC,
            bytes(64),  # user and group names
            _NUMBERS,  # device numbers
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )


def _pax_record(key: bytes, value: bytes) -> bytes:
    """`<length> <key>=<value>\\n`, where the length counts its own digits."""
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    if length != body + len(str(length)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)
