"""Nix archives (Nix manual, "Nix Archive (NAR) Format"), streamed in both directions.

Everything is a token: its length in 8 bytes, little-endian, its bytes, and zeros up to a multiple of 8. Entries
come as in the archive: a directory before what is in it, its entries in byte order of their names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.file_tree import (
    MAX_DEPTH,
    MAX_NAME,
    MAX_TARGET,
    Directory,
    FileEntry,
    Node,
    Regular,
    Symlink,
    name_defect,
    target_defect,
)  # fmt: skip

CHUNK: Final = 256 * 1024  # bytes; no chunk that comes out is larger
_SMALL: Final = 64 * 1024  # bytes; contents up to this are taken out of the buffer in one piece
_MAX_SIZE: Final = (1 << 63) - 1
_LENGTH: Final = Struct("<Q")


def _tokens(*texts: bytes) -> bytes:
    return b"".join(_LENGTH.pack(len(text)) + text + bytes(-len(text) % 8) for text in texts)


# Runs of tokens that can only come together are compared as one.
_START: Final = _tokens(b"nix-archive-1", b"(", b"type")
_REGULAR, _SYMLINK, _DIRECTORY = _tokens(b"regular"), _tokens(b"symlink", b"target"), _tokens(b"directory")
_EXECUTABLE, _CONTENTS = _tokens(b"executable", b""), _tokens(b"contents")
_ENTRY: Final = _tokens(b"entry", b"(", b"name")
_NODE: Final = _tokens(b"node", b"(", b"type")
_CLOSE, _CLOSE_BOTH = _tokens(b")"), _tokens(b")", b")")
_HEAD: Final = 16  # bytes of a token that tell it from all others that could stand in its place
_REGULAR_HEAD, _SYMLINK_HEAD, _ENTRY_HEAD = _REGULAR[:_HEAD], _SYMLINK[:_HEAD], _ENTRY[:_HEAD]
_LONGEST_TAG: Final = 32  # bytes, more than any there is; longer ones are not shown in errors
_EXECUTABLE_HEAD: Final = _EXECUTABLE[:_HEAD]


def read(chunks: Iterator[bytes]) -> Iterator[FileEntry]:
    """The entries of the one archive that `chunks`, of any size, make up.

    What is not read of an entry's content is skipped when the next entry is asked for. Raises InvalidFormat,
    at the latest at the end.
    """
    source = _Source(chunks)
    source.expect(_START)
    node = source.node()
    yield FileEntry(b"", node, source.content(node))
    if not isinstance(node, Directory):
        source.skip_content()
        source.expect(_CLOSE)
        source.expect_end()
        return
    # Of each open directory: what the names in it begin with, and the last of them.
    prefixes, last = [b""], [b""]
    while prefixes:
        if not source.is_next(_ENTRY_HEAD):
            source.expect(_CLOSE, "entry or )")
            prefixes.pop()
            last.pop()
            if prefixes:
                source.expect(_CLOSE)
            continue
        source.expect(_ENTRY)
        base_name = source.token(MAX_NAME, "a name")
        name = source.name = prefixes[-1] + base_name
        if defect := name_defect(base_name):
            raise source.error(defect)
        if base_name <= last[-1]:
            twice = base_name == last[-1]
            raise source.error("it is there twice" if twice else f"it must not come after {last[-1][:100]!r}")
        last[-1] = base_name
        source.expect(_NODE)
        node = source.node()
        yield FileEntry(name, node, source.content(node))
        if isinstance(node, Directory):
            if len(prefixes) > MAX_DEPTH:
                raise source.error(f"directories are nested deeper than {MAX_DEPTH}")
            prefixes.append(name + b"/")
            last.append(b"")
        else:
            source.skip_content()
            source.expect(_CLOSE_BOTH)
    source.expect_end()


def root(chunks: Iterator[bytes]) -> Node:
    """The node at the root; takes no more chunks than that needs. Raises InvalidFormat."""
    source = _Source(chunks)
    source.expect(_START)
    return source.node()


class _Source:
    """The bytes of an archive; keeps no more than a chunk and the longest token."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = _pieces(chunks)
        self._buffer = b""
        self._place = 0  # in the buffer
        self._passed = 0  # bytes before the buffer
        self._left = 0  # bytes of the current content that have not been read
        self._padding = 0  # bytes after the current content
        self._contents = 0  # how many there have been
        self.name = b""  # of the current entry, for errors

    def error(self, reason: str) -> InvalidFormat:
        return InvalidFormat("NAR", self.name, f"{reason} (near byte {self._passed + self._place})")

    def _have(self, size_bytes: int) -> bool:
        """Whether so many bytes are there; they are in the buffer then."""
        missing = size_bytes - (len(self._buffer) - self._place)
        if missing <= 0:
            return True
        parts = [self._buffer[self._place :]]
        while missing > 0 and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            missing -= len(chunk)
        self._passed += self._place
        self._buffer, self._place = b"".join(parts), 0
        return missing <= 0

    def _need(self, size_bytes: int) -> None:
        if not self._have(size_bytes):
            raise self.error("it is truncated")

    def is_next(self, head: bytes) -> bool:
        return self._buffer.startswith(head, self._place) or self._is_there(head)

    def _is_there(self, text: bytes) -> bool:
        return self._have(len(text)) and self._buffer.startswith(text, self._place)

    def expect(self, tokens: bytes, expected: str = "") -> None:
        # Mostly it is there: the rest is for the ends of chunks and for errors.
        if not self._buffer.startswith(tokens, self._place) and not self._is_there(tokens):
            raise self._unexpected(tokens, expected)
        self._place += len(tokens)

    def _unexpected(self, tokens: bytes, expected: str) -> InvalidFormat:
        """The error that names the first token which is not the one of `tokens`."""
        found = self._buffer[self._place : self._place + len(tokens) + 8]
        if tokens.startswith(found):
            return self.error("it is truncated")
        place = 0
        while True:
            (length,) = _LENGTH.unpack_from(tokens, place)
            end = place + 8 + length + -length % 8
            if not found.startswith(tokens[place:end], place):
                break
            place = end
        expected_text = tokens[place + 8 : place + 8 + length]
        wanted = expected or repr(expected_text.decode())
        self._place += place
        if not self._have(8):
            return self.error("it is truncated")
        (actual,) = _LENGTH.unpack_from(self._buffer, self._place)
        if actual > _LONGEST_TAG:
            return self.error(f"{wanted} is expected here, not a token of {actual} bytes")
        if not self._have(8 + actual + -actual % 8):
            return self.error("it is truncated")
        text = self._buffer[self._place + 8 : self._place + 8 + actual]
        if text == expected_text:
            return self.error(f"the padding of {wanted} is not zero")
        return self.error(f"{wanted} is expected here, not {text.decode('ascii', 'backslashreplace')!r}")

    def token(self, max_length: int, what: str) -> bytes:
        self._need(8)
        (length,) = _LENGTH.unpack_from(self._buffer, self._place)
        if length > max_length:
            raise self.error(f"{what} has at most {max_length} bytes, here are {length}")
        return self._text(length, what)

    def _text(self, length: int, what: str) -> bytes:
        """The bytes of a token whose length, as yet unread, is known to be small."""
        padding = -length % 8
        self._need(8 + length + padding)
        end = self._place + 8 + length
        text = self._buffer[self._place + 8 : end]
        if padding and any(self._buffer[end : end + padding]):
            raise self.error(f"the padding of {what} is not zero")
        self._place = end + padding
        return text

    def node(self) -> Node:
        """What follows `type`, up to where a content, the end of the node or its entries begin."""
        if self.is_next(_REGULAR_HEAD):
            self._place += len(_REGULAR)
            if executable := self.is_next(_EXECUTABLE_HEAD):
                self.expect(_EXECUTABLE)
            self.expect(_CONTENTS)
            self._need(8)
            (size_bytes,) = _LENGTH.unpack_from(self._buffer, self._place)
            if size_bytes > _MAX_SIZE:
                raise self.error(f"no file has {size_bytes} bytes")
            return Regular(size_bytes, executable)
        if self.is_next(_SYMLINK_HEAD):
            self.expect(_SYMLINK)
            target = self.token(MAX_TARGET, "a link's target")
            if defect := target_defect(target):
                raise self.error(defect)
            return Symlink(os.fsdecode(target))
        self.expect(_DIRECTORY, "regular, symlink or directory")
        return Directory()

    def content(self, node: Node) -> Iterator[bytes]:
        """The content of a node that was just read."""
        if not isinstance(node, Regular):
            return iter(())
        if node.size_bytes <= _SMALL:
            text = self._text(node.size_bytes, "a content")
            return iter((text,) if text else ())
        self._place += 8
        self._left, self._padding = node.size_bytes, -node.size_bytes % 8
        self._contents += 1
        return self._large_content(self._contents)

    def _large_content(self, number: int) -> Iterator[bytes]:
        while number == self._contents and self._left:
            yield self._some_content()
        if number != self._contents:
            raise RuntimeError("an entry's content must be read before the next entry")

    def _some_content(self) -> bytes:
        self._need(1)
        piece = self._buffer[self._place : self._place + self._left]
        self._place += len(piece)
        self._left -= len(piece)
        return piece

    def skip_content(self) -> None:
        """Go behind the current content, if any, and its padding."""
        while self._left:
            self._some_content()
        if self._padding:
            self._need(self._padding)
            if any(self._buffer[self._place : self._place + self._padding]):
                raise self.error("the padding of a content is not zero")
            self._place += self._padding
            self._padding = 0
        self._contents += 1

    def expect_end(self) -> None:
        self.name = b""
        if self._have(1):
            raise self.error("there are bytes after its end")


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks, none empty or larger than CHUNK."""
    for chunk in chunks:
        if len(chunk) <= CHUNK:
            if chunk:
                yield chunk
        else:
            for start in range(0, len(chunk), CHUNK):
                yield chunk[start : start + CHUNK]


def write(entries: Iterable[FileEntry], offsets: dict[bytes, int] | None = None) -> Iterator[bytes]:
    """The archive of `entries`, in chunks. `offsets` gets the place of each regular file's content, by name.

    Raises InvalidFormat for entries out of order and contents that are not as long as their nodes say.
    """
    pending: list[bytes] = []
    size_bytes = passed = 0
    for piece in _written(entries):
        if isinstance(piece, FileEntry):
            if offsets is not None:
                offsets[piece.name] = passed + size_bytes
            continue
        if size_bytes + len(piece) > CHUNK:
            yield b"".join(pending)
            passed += size_bytes
            pending, size_bytes = [], 0
        pending.append(piece)
        size_bytes += len(piece)
    yield b"".join(pending)


def _written(entries: Iterable[FileEntry]) -> Iterator[bytes | FileEntry]:
    """The archive in pieces as they come, and each regular file's entry where its content begins."""
    opened: list[bytes] = []  # the names of the directories that are open, with a / behind all but the root's
    last: list[bytes] = []  # the last name in each of them
    started = False
    for entry in entries:
        name, node = entry.name, entry.node
        if not started:
            if name:
                raise InvalidFormat("NAR", name, "the first entry must be the root")
            started = True
            yield _START
        else:
            parent, slash, base_name = name.rpartition(b"/")
            while opened and opened[-1] != parent + slash:
                opened.pop()
                last.pop()
                yield _CLOSE_BOTH
            if not opened:
                raise InvalidFormat("NAR", name, "its directory does not come right before it")
            _check_name(name, base_name, last[-1])
            last[-1] = base_name
            yield b"".join((_ENTRY, _tokens(base_name), _NODE))
        if isinstance(node, Directory):
            if len(opened) > MAX_DEPTH:
                raise InvalidFormat("NAR", name, f"directories are nested deeper than {MAX_DEPTH}")
            opened.append(name + b"/" if name else b"")
            last.append(b"")
            yield _DIRECTORY
        else:
            yield from _leaf(entry, node)
            yield _CLOSE_BOTH if opened else _CLOSE
    if not started:
        raise InvalidFormat("NAR", b"", "there is no entry")
    for _ in opened[1:]:
        yield _CLOSE_BOTH
    if opened:
        yield _CLOSE


def _check_name(name: bytes, base_name: bytes, last: bytes) -> None:
    if defect := name_defect(base_name):
        raise InvalidFormat("NAR", name, defect)
    if base_name <= last:
        raise InvalidFormat("NAR", name, "the entries of a directory must be sorted, each there once")


def _leaf(entry: FileEntry, node: Regular | Symlink) -> Iterator[bytes | FileEntry]:
    """What is not a directory, from its type to where its node ends."""
    if isinstance(node, Symlink):
        target = os.fsencode(node.target)
        if defect := target_defect(target):
            raise InvalidFormat("NAR", entry.name, defect)
        yield _SYMLINK + _tokens(target)
        return
    if not 0 <= node.size_bytes <= _MAX_SIZE:
        raise InvalidFormat("NAR", entry.name, f"no file has {node.size_bytes} bytes")
    yield b"".join(
        (_REGULAR, _EXECUTABLE if node.executable else b"", _CONTENTS, _LENGTH.pack(node.size_bytes))
    )
    yield entry
    yield from _exactly(entry, node.size_bytes)
    yield bytes(-node.size_bytes % 8)


def _exactly(entry: FileEntry, size_bytes: int) -> Iterator[bytes]:
    """The entry's content, if it has that size."""
    found = 0
    for piece in _pieces(entry.content):
        found += len(piece)
        if found > size_bytes:
            break
        yield piece
    if found != size_bytes:
        shown = "more" if found > size_bytes else str(found)
        raise InvalidFormat("NAR", entry.name, f"its content should have {size_bytes} bytes and has {shown}")
