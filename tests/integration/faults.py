"""All that goes wrong with binary caches, by the kind of request that it happens to."""

import json
import zlib

from tests.integration import misbehaving as wrong
from tests.integration.misbehaving import Fault, Kind

HUGE = 10_000_000


def bomb() -> bytes:
    """512 MiB of zeros as gzip has them: the same block again and again, as compressing them takes seconds."""
    piece, count = bytes(1024 * 1024), 512
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(count):
        checksum = zlib.crc32(piece, checksum)
    header, trailer = b"\x1f\x8b\x08" + bytes(7), (checksum, count * len(piece))
    return (
        header + block * count + packer.flush() + b"".join(number.to_bytes(4, "little") for number in trailer)
    )


# Whatever is asked for.
ANY: dict[str, Fault] = {
    "not found": wrong.status(404),
    "server error": wrong.status(500),
    "slow headers": wrong.slow_headers,
    "truncated": wrong.truncated,
    "reset": wrong.reset_at_once,
}
# Of what is read to its end, whatever it takes.
WHOLE: dict[str, Fault] = {
    **ANY,
    "too many requests": wrong.status(429, Retry_After="1"),
    "slow body": wrong.slow_body,
    "stalled body": wrong.stalled_body,
    "shortened": wrong.shortened,
    "reset in the body": wrong.reset_in_body,
    "redirect loop": wrong.redirect_loop,
    "empty": wrong.instead(b""),
    "a page for people": wrong.instead(b"<html><body>Log in, please</body></html>"),
}
# What a cache may answer to a question about a path.
NARINFO_FAULTS: dict[str, Fault] = {
    **WHOLE,
    "forbidden": wrong.status(403),
    "bad gateway": wrong.status(502),
    "too many requests for long": wrong.status(429, Retry_After="3600"),
    "redirect elsewhere": wrong.status(302, Location="http://127.0.0.1:1/"),
    "redirect to a file": wrong.status(302, Location="file:///etc/passwd"),
    "not text": wrong.instead(bytes(range(256)) * 8),
    "10 MB": wrong.altered(lambda content: content + b"X: " + b"x" * HUGE + b"\n"),
    "10 MB of lines": wrong.altered(lambda content: content + b"X: y\n" * (HUGE // 5)),
    "unsigned": wrong.altered(wrong.line("Sig", None)),
    "signature of nonsense": wrong.altered(wrong.line("Sig", "full-cache-1:bm9uc2Vuc2U=")),
    "signature of other content": wrong.altered(wrong.line("NarHash", f"sha256:{'0' * 52}")),
    "another size": wrong.altered(wrong.line("NarSize", "1")),
    "fewer references": wrong.altered(wrong.line("References", "")),
    "wrong store directory": wrong.altered(lambda content: content.replace(b"/nix/store", b"/gnu/store")),
    "leads out of the cache": wrong.altered(wrong.line("URL", "../../../../etc/passwd")),
    "leads to another server": wrong.altered(wrong.line("URL", "http://127.0.0.1:1/nar")),
}
# Those that say something wrong instead of nothing: they are reported.
LIES = {
    "unsigned",
    "signature of nonsense",
    "signature of other content",
    "another size",
    "fewer references",
    "wrong store directory",
}
LISTING_FAULTS: dict[str, Fault] = {
    **ANY,
    "not JSON": wrong.instead(b"<html>"),
    "deep": wrong.instead(b'{"version":1,"root":' + b'{"type":"directory","entries":{"a":' * 50_000),
    "gzip bomb": wrong.instead(bomb()),
    "names that leave": wrong.instead(
        json.dumps(
            {
                "version": 1,
                "root": {"type": "directory", "entries": {"..": {"type": "directory", "entries": {}}}},
            }
        ).encode()
    ),
}
NAR_FAULTS: dict[str, Fault] = {
    **WHOLE,
    "one bit": wrong.altered(wrong.flipped),
    "bytes behind its end": wrong.altered(lambda content: content + b"more"),
    "gzip bomb": wrong.instead(bomb()),
}
FAULTS = {Kind.NARINFO: NARINFO_FAULTS, Kind.LISTING: LISTING_FAULTS, Kind.NAR: NAR_FAULTS}
