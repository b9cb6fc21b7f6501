import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.oci import compression
from nixery_snap.oci.compression import Compression

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BOTH = pytest.mark.parametrize("kind", list(Compression))
UNPACK = {Compression.GZIP: gzip.decompress, Compression.ZSTD: zstd.decompress}


def cut(content: bytes, places: list[int]) -> Iterator[bytes]:
    """The same content in other chunks, empty ones among them."""
    edges = [0, *sorted(place % (len(content) + 1) for place in places), len(content)]
    return (content[start:end] for start, end in pairwise(edges))


def whole(chunks: Iterator[bytes]) -> bytes:
    return b"".join(chunks)


# Long enough to fill several of the codec's pieces: a short seed, repeated with changes.
contents = st.builds(
    lambda seed, times, tail: (seed * times) + tail,
    st.binary(min_size=1, max_size=2000),
    st.integers(0, 900),
    st.binary(max_size=100),
)
places = st.lists(st.integers(0, 2**31), max_size=6)


@BOTH
@given(contents, places, places)
def test_round_trip_in_any_chunks(kind: Compression, content: bytes, fed: list[int], read: list[int]) -> None:
    packed = whole(compression.compress(cut(content, fed), kind))
    assert packed == whole(compression.compress([content], kind))
    assert UNPACK[kind](packed) == content
    pieces = list(compression.decompress(cut(packed, read), kind))
    assert b"".join(pieces) == content
    assert all(len(piece) <= compression.CHUNK_BYTES for piece in pieces)


@BOTH
@pytest.mark.parametrize(
    "size", [0, 1, *(n * compression.CHUNK_BYTES + d for n in (1, 2) for d in (-1, 0, 1))]
)
def test_around_whole_pieces(kind: Compression, size: int) -> None:
    content = bytes(number * number % 251 for number in range(size))
    for step in (size or 1, 1000, compression.CHUNK_BYTES, compression.CHUNK_BYTES - 1):
        chunks = (content[start : start + step] for start in range(0, size, step))
        packed = whole(compression.compress(chunks, kind))
        assert packed == whole(compression.compress(iter([content]), kind))
        assert UNPACK[kind](packed) == content


def test_nothing_in_the_head_tells_of_machine_or_time() -> None:
    packed = whole(compression.compress([b"x"]))
    # RFC 1952, section 2.3: magic, deflate, no flags, no mtime; XFL, then the operating system
    assert packed[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
    assert packed[9] in {3, 255}


@BOTH
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), places)
def test_members_one_behind_the_other(kind: Compression, parts: list[bytes], read: list[int]) -> None:
    packed = b"".join(whole(compression.compress([part], kind)) for part in parts)
    assert whole(compression.decompress(cut(packed, read), kind)) == b"".join(parts)
    assert UNPACK[kind](packed) == b"".join(parts)


@BOTH
def test_a_byte_at_a_time(kind: Compression) -> None:
    content = bytes(3_000_000) + b"end"
    packed = whole(compression.compress([content], kind))
    assert whole(compression.decompress((bytes([byte]) for byte in packed), kind)) == content


@BOTH
def test_what_unpacks_to_much_comes_in_pieces(kind: Compression) -> None:
    packed = whole(compression.compress([bytes(3_000_000)], kind))
    pieces = list(compression.decompress([packed], kind))
    assert sum(map(len, pieces)) == 3_000_000
    assert max(map(len, pieces)) <= compression.CHUNK_BYTES


@BOTH
def test_nothing_is_no_member(kind: Compression) -> None:
    assert whole(compression.decompress([], kind)) == b""
    assert whole(compression.decompress([b"", b""], kind)) == b""


def test_other_peoples_gzip() -> None:
    file = io.BytesIO()
    with gzip.GzipFile("named.txt", "wb", 9, file) as packed:
        packed.write(b"content")
    assert whole(compression.decompress([file.getvalue()])) == b"content"


PACKED = whole(compression.compress([bytes(range(256)) * 40]))


@BOTH
@given(st.integers(1, 400), places)
def test_cut_short(kind: Compression, length: int, read: list[int]) -> None:
    packed = whole(compression.compress([bytes(range(256)) * 40], kind))
    short = packed[: min(length, len(packed) - 1)]
    with pytest.raises(ValueError, match="ends too early"):
        whole(compression.decompress(cut(short, read), kind))
    with pytest.raises(ValueError, match="ends too early"):
        whole(compression.decompress(cut(packed + short, read), kind))


@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
def test_one_byte_damaged(place: int, change: int) -> None:
    damaged = PACKED[:place] + bytes([PACKED[place] ^ change]) + PACKED[place + 1 :]
    try:
        expected = zlib.decompress(damaged, 31)  # flags of the head may be changed without loss
    except zlib.error:
        with pytest.raises(ValueError, match=r"damaged|too early"):
            whole(compression.decompress([damaged]))
    else:
        assert whole(compression.decompress([damaged])) == expected


@BOTH
@pytest.mark.parametrize("junk", [b"\0" * 512, b"not gzip at all", zlib.compress(b"x" * 20)])
def test_junk(kind: Compression, junk: bytes) -> None:
    packed = whole(compression.compress([b"x"], kind))
    with pytest.raises(ValueError, match="damaged"):
        whole(compression.decompress([junk], kind))
    with pytest.raises(ValueError, match="damaged"):
        whole(compression.decompress([packed, junk], kind))
