"""Archives made by hand: good ones, and ones that no tar program would make."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
from collections.abc import Callable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd.compress,
    "": lambda content: content,
}


def compress(content: bytes, compression: str) -> bytes:
    return COMPRESS[compression](content)


def entry(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644
) -> bytes:
    """Header and content of one, as the standard library writes them."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, target, mode, len(content)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)


def tar(*entries: bytes) -> io.BytesIO:
    return io.BytesIO(b"".join(entries) + bytes(1024))
