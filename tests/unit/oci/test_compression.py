import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.oci import compression


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


@given(contents, places, places)
def test_round_trip_in_any_chunks(content: bytes, fed: list[int], read: list[int]) -> None:
    packed = whole(compression.compress(cut(content, fed)))
    assert packed == whole(compression.compress([content]))
    assert gzip.decompress(packed) == content
    pieces = list(compression.decompress(cut(packed, read)))
    assert b"".join(pieces) == content
    assert all(len(piece) <= compression.CHUNK_BYTES for piece in pieces)


@pytest.mark.parametrize(
    "size", [0, 1, *(n * compression.CHUNK_BYTES + d for n in (1, 2) for d in (-1, 0, 1))]
)
def test_around_whole_pieces(size: int) -> None:
    content = bytes(number * number % 251 for number in range(size))
    for step in (size or 1, 1000, compression.CHUNK_BYTES, compression.CHUNK_BYTES - 1):
        chunks = (content[start : start + step] for start in range(0, size, step))
        packed = whole(compression.compress(chunks))
        assert packed == whole(compression.compress(iter([content])))
        assert gzip.decompress(packed) == content


def test_nothing_in_the_head_tells_of_machine_or_time() -> None:
    packed = whole(compression.compress([b"x"]))
    # RFC 1952, section 2.3: magic, deflate, no flags, no mtime; XFL, then the operating system
    assert packed[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
    assert packed[9] in {3, 255}


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), places)
def test_members_one_behind_the_other(parts: list[bytes], read: list[int]) -> None:
    packed = b"".join(whole(compression.compress([part])) for part in parts)
    assert whole(compression.decompress(cut(packed, read))) == b"".join(parts)
    assert gzip.decompress(packed) == b"".join(parts)


def test_a_byte_at_a_time() -> None:
    content = bytes(3_000_000) + b"end"
    packed = whole(compression.compress([content]))
    assert whole(compression.decompress(bytes([byte]) for byte in packed)) == content


def test_what_unpacks_to_much_comes_in_pieces() -> None:
    packed = whole(compression.compress([bytes(3_000_000)]))
    pieces = list(compression.decompress([packed]))
    assert sum(map(len, pieces)) == 3_000_000
    assert max(map(len, pieces)) <= compression.CHUNK_BYTES


def test_nothing_is_no_member() -> None:
    assert whole(compression.decompress([])) == b""
    assert whole(compression.decompress([b"", b""])) == b""


def test_other_peoples_gzip() -> None:
    file = io.BytesIO()
    with gzip.GzipFile("named.txt", "wb", 9, file) as packed:
        packed.write(b"content")
    assert whole(compression.decompress([file.getvalue()])) == b"content"


PACKED = whole(compression.compress([bytes(range(256)) * 40]))


@given(st.integers(1, len(PACKED) - 1), places)
def test_cut_short(length: int, read: list[int]) -> None:
    with pytest.raises(ValueError, match="ends too early"):
        whole(compression.decompress(cut(PACKED[:length], read)))
    with pytest.raises(ValueError, match="ends too early"):
        whole(compression.decompress(cut(PACKED + PACKED[:length], read)))


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


@pytest.mark.parametrize("junk", [b"\0" * 512, b"not gzip at all", zlib.compress(b"x")])
def test_junk(junk: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        whole(compression.decompress([junk]))
    with pytest.raises(ValueError, match="damaged"):
        whole(compression.decompress([PACKED, junk]))
