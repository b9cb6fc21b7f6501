"""The codecs of layers, the same bytes on every machine: gzip members by zlib-ng, or zstd frames.

A layer is a concatenation of gzip members (RFC 1952, section 2.2) or zstd frames (RFC 8878, section 3.1), one per
store path, so that a member made for one layer can be copied into the next. Why these codecs at these levels, fed in
this way: docs/decisions/0003-compression.md, docs/decisions/0018-zstd-layers.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final

from zlib_ng import zlib_ng

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 2
ZSTD_LEVEL: Final = 3
CHUNK_BYTES: Final = 256 * 1024
_GZIP = 16 + 15  # gzip framing, 32 KiB window


class Compression(StrEnum):
    GZIP = "gzip"
    ZSTD = "zstd"

    @property
    def codec(self) -> str:
        """Part of every key under which compressed bytes are remembered: another version may write others."""
        return CODEC if self is Compression.GZIP else ZSTD_CODEC


CODEC: Final = f"gzip-zlib-ng-{zlib_ng.ZLIBNG_RUNTIME_VERSION}-level{LEVEL}"
ZSTD_CODEC: Final = f"zstd-{zstd.zstd_version}-level{ZSTD_LEVEL}"


def compress(
    chunks: Iterable[bytes | memoryview], compression: Compression = Compression.GZIP
) -> Iterator[bytes]:
    """One member holding all chunks. The result depends on their concatenation only.

    The codec's output may change with the sizes of the pieces that it is fed, so it is always fed whole
    pieces of CHUNK_BYTES and one last remainder, by one thread.
    """
    codec = (
        zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, _GZIP)
        if compression is Compression.GZIP
        else zstd.ZstdCompressor(ZSTD_LEVEL)
    )
    for piece in pieces(chunks):
        if packed := codec.compress(piece):
            yield packed
    yield codec.flush()


def decompress(chunks: Iterable[bytes], compression: Compression = Compression.GZIP) -> Iterator[bytes]:
    """The content of one or more members, in pieces of at most CHUNK_BYTES.

    Raises ValueError on what is not of this compression, is damaged or ends too early.
    """
    return _gunzip(chunks) if compression is Compression.GZIP else _unzstd(chunks)


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    codec = None
    for chunk in chunks:
        rest = chunk
        while rest:
            if codec is None:
                codec = zlib_ng.decompressobj(_GZIP)
            try:
                if piece := codec.decompress(rest, CHUNK_BYTES):
                    yield piece
            except zlib_ng.error as error:  # type: ignore[misc] # its stub calls it an int
                raise ValueError(f"damaged gzip data: {error}") from error
            if codec.eof:
                rest, codec = codec.unused_data, None
            else:
                rest = codec.unconsumed_tail
    if codec is not None:
        raise ValueError("the gzip data ends too early")


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    codec = None
    for chunk in chunks:
        rest = chunk
        while rest or (codec is not None and not codec.needs_input):
            if codec is None:
                codec = zstd.ZstdDecompressor()
            try:
                if piece := codec.decompress(rest, CHUNK_BYTES):
                    yield piece
            except zstd.ZstdError as error:
                raise ValueError(f"damaged zstd data: {error}") from error
            rest = b""
            if codec.eof:
                rest, codec = codec.unused_data, None
    if codec is not None:
        raise ValueError("the zstd data ends too early")


def pieces(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes cut anew: every piece but the last has CHUNK_BYTES."""
    buffer = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        if buffer:
            taken = min(CHUNK_BYTES - len(buffer), len(view))
            buffer += view[:taken]
            view = view[taken:]
            if len(buffer) < CHUNK_BYTES:
                continue
            yield bytes(buffer)
            buffer.clear()
        while len(view) >= CHUNK_BYTES:
            yield view[:CHUNK_BYTES]
            view = view[CHUNK_BYTES:]
        buffer += view
    if buffer:
        yield bytes(buffer)
