"""The one codec of layers: gzip members by zlib-ng, the same bytes on every machine.

A layer is a concatenation of gzip members (RFC 1952, section 2.2), one per store path, so that a member made
for one layer can be copied into the next. Why this codec at this level, fed in this way:
docs/decisions/0003-compression.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from zlib_ng import zlib_ng

LEVEL: Final = 2
CHUNK_BYTES: Final = 256 * 1024
# Part of every key under which compressed bytes are remembered: another library version may write others.
CODEC: Final = f"gzip-zlib-ng-{zlib_ng.ZLIBNG_RUNTIME_VERSION}-level{LEVEL}"
_GZIP = 16 + 15  # gzip framing, 32 KiB window


def compress(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """One gzip member holding all chunks. The result depends on their concatenation only.

    The codec's output may change with the sizes of the pieces that it is fed, so it is always fed whole
    pieces of CHUNK_BYTES and one last remainder.
    """
    codec = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, _GZIP)
    for piece in pieces(chunks):
        if packed := codec.compress(piece):
            yield packed
    yield codec.flush()


def decompress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The content of one or more gzip members, in pieces of at most CHUNK_BYTES.

    Raises ValueError on what is not gzip, is damaged or ends too early.
    """
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
