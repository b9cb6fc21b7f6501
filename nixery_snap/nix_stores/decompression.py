"""The compressions of NARs, listings and logs, undone piece by piece with bounded memory.

A NAR may be several members of its compression one after the other; what comes after the last must be one.
"""

from __future__ import annotations

import bz2
import lzma
import sys
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import brotli  # type: ignore[import-untyped]
from zlib_ng import zlib_ng

from nixery_snap.errors import InvalidFormat

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES: Final = 256 * 1024
# A decoder that has reached its member's end copies what it was fed beyond it: so it is fed a little at a time.
_FEED_BYTES: Final = 64 * 1024
_XZ_MEMORY_BYTES: Final = 128 * 1024 * 1024  # xz -9 takes 65 MiB
_ZSTD_WINDOW_LOG: Final = 27  # 128 MiB, what zstd itself accepts without being asked
_GZIP: Final = 16 + 15  # gzip framing, 32 KiB window
_EMPTY_MEMBERS: Final = 1000  # one after the other; a few bytes of each take as long as thousands of others
_ERRORS: Final = (lzma.LZMAError, zstd.ZstdError, zlib_ng.error, brotli.error, OSError, EOFError, MemoryError)

_MAGICS: Final = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz"), (b"\x1f\x8b", "gzip"))


class _Decoder(Protocol):
    """One member, as the standard library's own decoders do it."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._decoder = zlib_ng.decompressobj(_GZIP)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class _Brotli:
    """Has no members: its decoder refuses whatever comes after the end."""

    unused_data = b""

    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()
        self._pending = False

    @property
    def eof(self) -> bool:
        return bool(self._decoder.is_finished())

    @property
    def needs_input(self) -> bool:
        # A decoder that takes more may still have to give what the limit held back.
        return bool(self._decoder.can_accept_more_data()) and not self._pending

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece: bytes = self._decoder.process(data, output_buffer_limit=max_length)
        self._pending = len(piece) >= max_length
        return piece


_DECODERS: Final[dict[str, Callable[[], _Decoder]]] = {
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES),
    "zstd": lambda: zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    ),
    "bzip2": bz2.BZ2Decompressor,
    "gzip": _Gzip,
    "br": _Brotli,
}


def decompress(chunks: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """What `chunks` hold, in pieces of at most PIECE_BYTES; `compression` is a narinfo's, empty for none.

    Reads no more chunks than the pieces taken need. Raises InvalidFormat, for an unknown compression too.
    """
    if compression in {"", "none"}:
        return _cut(chunks)
    make = _DECODERS.get(compression)
    if make is None:
        raise InvalidFormat("compression", compression, f"only none, {', '.join(_DECODERS)} are known")
    return _members(chunks, compression, make)


def sniffed(content: bytes, max_bytes: int) -> bytes:
    """The content of a small body, compressed or not; raises InvalidFormat when that is over `max_bytes`."""
    compression = next((name for magic, name in _MAGICS if content.startswith(magic)), None)
    if compression is None:
        compression = "br" if _is_brotli(content) else "none"
    found = bytearray()
    for piece in decompress(iter((content,)), compression):
        found += piece
        if len(found) > max_bytes:
            raise InvalidFormat("body", content[:16], f"its content is larger than {max_bytes} bytes")
    return bytes(found)


def _is_brotli(content: bytes) -> bool:
    """Brotli has no magic, but its decoder soon stumbles over text; no JSON object is valid brotli."""
    decoder = _Brotli()
    try:
        decoder.decompress(content[:_FEED_BYTES], _FEED_BYTES)
    except brotli.error:
        return False
    return decoder.eof or not decoder.needs_input or len(content) > _FEED_BYTES


def _members(chunks: Iterator[bytes], compression: str, make: Callable[[], _Decoder]) -> Iterator[bytes]:
    decoder = make()
    empty = 0
    try:
        for fed in _cut(chunks, _FEED_BYTES):
            if decoder.eof and compression != "br":  # brotli's refuses to go on, as it should
                decoder = make()
            rest = fed
            while True:
                piece = decoder.decompress(rest, PIECE_BYTES)
                yield from _cut(iter((piece,)))
                if piece:
                    empty = 0
                if decoder.eof:
                    empty += 1
                    if empty > _EMPTY_MEMBERS:
                        raise InvalidFormat(f"{compression} stream", "…", "it has too many empty members")
                    rest = decoder.unused_data
                    if not rest:
                        break
                    decoder = make()
                elif decoder.needs_input:
                    break
                else:
                    rest = b""
    except _ERRORS as error:  # type: ignore[misc] # the stub of zlib-ng calls its error an int
        raise InvalidFormat(f"{compression} stream", "…", str(error) or type(error).__name__) from error
    if not decoder.eof:
        raise InvalidFormat(f"{compression} stream", "…", "it ends too early")


def _cut(chunks: Iterator[bytes], size_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    for chunk in chunks:
        if len(chunk) <= size_bytes:
            if chunk:
                yield chunk
            continue
        for start in range(0, len(chunk), size_bytes):
            yield chunk[start : start + size_bytes]
