import bz2
import gzip
import lzma
import random
import tracemalloc
from collections.abc import Callable, Iterator

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix_stores.decompression import PIECE_BYTES, decompress, sniffed, zstd

CODECS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "": bytes,
    "xz": lzma.compress,
    "zstd": zstd.compress,
    "bzip2": bz2.compress,
    "gzip": gzip.compress,
    "br": brotli.compress,
}
FRAMED = sorted(CODECS.keys() - {"none", ""})
SOME = random.Random(1).randbytes(300_000) + bytes(700_000) + b"end"


def cut(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def plain(content: bytes, compression: str, size: int = 65536) -> bytes:
    pieces = list(decompress(cut(content, size), compression))
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("size", [1 << 30, 65536, 4099])
def test_what_was_compressed(compression: str, size: int) -> None:
    assert plain(CODECS[compression](SOME), compression, size) == SOME


@pytest.mark.parametrize("compression", FRAMED)
@given(content=st.binary(max_size=300), size=st.integers(1, 50))
def test_whatever_the_pieces(compression: str, content: bytes, size: int) -> None:
    assert plain(CODECS[compression](content), compression, size) == content


@pytest.mark.parametrize("compression", sorted(set(FRAMED) - {"br"}))
@pytest.mark.parametrize("size", [1 << 30, 7])
def test_members_one_after_the_other(compression: str, size: int) -> None:
    parts = [b"one", b"", b"two" * 50_000, b"three"]
    packed = b"".join(map(CODECS[compression], parts))
    assert plain(packed, compression, size) == b"".join(parts)


@pytest.mark.parametrize("compression", FRAMED)
@pytest.mark.parametrize("size", [1 << 30, 11])
def test_what_is_cut_short_or_goes_on(compression: str, size: int) -> None:
    packed = CODECS[compression](b"content" * 100)
    for end in range(len(packed)):
        with pytest.raises(InvalidFormat):
            plain(packed[:end], compression, size)
    for rest in (b"x", b"\0", b"\0" * 12, b"garbage " * 40, packed[:5]):
        with pytest.raises(InvalidFormat):
            plain(packed + rest, compression, size)
    # The end of the stream and the beginning of what follows it come in pieces of their own.
    with pytest.raises(InvalidFormat):
        list(decompress(iter((packed, b"garbage")), compression))


@pytest.mark.parametrize("compression", FRAMED)
def test_damaged(compression: str) -> None:
    with pytest.raises(InvalidFormat, match=compression):
        plain(b"this is something else, and long enough to be seen as that" * 10, compression)


@pytest.mark.parametrize("compression", ["lz4", "lzip", "XZ", "gz", "compress"])
def test_unknown(compression: str) -> None:
    with pytest.raises(InvalidFormat, match="known"):
        decompress(iter((b"x",)), compression)


@pytest.mark.parametrize("compression", FRAMED)
def test_bombs_take_no_memory(compression: str) -> None:
    bomb = CODECS[compression](bytes(200_000_000 if compression in {"xz", "zstd"} else 50_000_000))
    assert len(bomb) < 1_000_000
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in decompress(iter((bomb,)), compression))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total >= 50_000_000
    assert peak < 20_000_000


def test_memory_that_a_header_asks_for_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    greedy = lzma.compress(b"small", lzma.FORMAT_XZ, filters=filters)
    with pytest.raises(InvalidFormat, match="emory"):
        plain(greedy, "xz")
    # A frame header (RFC 8878, 3.1.1.1) with no content size and a window of 2^31 bytes.
    with pytest.raises(InvalidFormat, match=r"emory|indow"):
        plain(b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00", "zstd")


def test_the_strongest_settings_are_read() -> None:
    assert plain(lzma.compress(SOME, preset=9 | lzma.PRESET_EXTREME), "xz") == SOME
    options = {zstd.CompressionParameter.compression_level: 22, zstd.CompressionParameter.window_log: 27}
    assert plain(zstd.compress(SOME, options=options), "zstd") == SOME


@pytest.mark.parametrize("compression", ["none", *FRAMED])
def test_no_more_is_read_than_is_taken(compression: str) -> None:
    content = random.Random(2).randbytes(4_000_000)
    packed, read = CODECS[compression](content), 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for chunk in cut(packed, 10_000):
            read += len(chunk)
            yield chunk

    assert content.startswith(next(decompress(chunks(), compression)))
    assert read <= 1_000_000, "bzip2 has blocks of 900,000 bytes, the others shorter ones"


@pytest.mark.parametrize("compression", ["none", "xz", "zstd", "gzip", "br"])
@pytest.mark.parametrize(
    "content", [b'{"version":1}', b"", b"x" * 100_000, b"building\n" * 9, b'{"a":"' + b"b" * 200_000 + b'"}']
)
def test_sniffing(compression: str, content: bytes) -> None:
    assert sniffed(CODECS[compression](content), 1 << 20) == content


@given(st.text(max_size=200).map(lambda text: b'{"' + text.encode(errors="replace")))
def test_json_is_never_taken_for_something_else(content: bytes) -> None:
    assert sniffed(content, 1 << 20) == content


@pytest.mark.parametrize("compression", ["none", "xz", "zstd", "gzip", "br"])
def test_sniffing_has_a_limit(compression: str) -> None:
    assert sniffed(CODECS[compression](b"{" + bytes(999)), 1000) == b"{" + bytes(999)
    with pytest.raises(InvalidFormat, match="larger than 1000"):
        sniffed(CODECS[compression](b"{" + bytes(1000)), 1000)
    bomb = CODECS[compression](b"{" + bytes(50_000_000))
    with pytest.raises(InvalidFormat, match="larger than 1000"):
        sniffed(bomb, 1000)
