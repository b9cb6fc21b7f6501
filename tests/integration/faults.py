"""All that goes wrong with binary caches, by the kind of request that it happens to."""

import gzip
import json

from tests.integration import misbehaving as wrong
from tests.integration.misbehaving import Fault

HUGE = 10_000_000

# What a cache may answer to a question about a path.
NARINFO_FAULTS: dict[str, Fault] = {
    "not found": wrong.status(404),
    "forbidden": wrong.status(403),
    "server error": wrong.status(500),
    "bad gateway": wrong.status(502),
    "too many requests": wrong.status(429, Retry_After="1"),
    "too many requests for long": wrong.status(429, Retry_After="3600"),
    "slow headers": wrong.slow_headers,
    "slow body": wrong.slow_body,
    "stalled body": wrong.stalled_body,
    "truncated": wrong.truncated,
    "shortened": wrong.shortened,
    "reset": wrong.reset_at_once,
    "reset in the body": wrong.reset_in_body,
    "redirect loop": wrong.redirect_loop,
    "redirect elsewhere": wrong.status(302, Location="http://127.0.0.1:1/"),
    "redirect to a file": wrong.status(302, Location="file:///etc/passwd"),
    "empty": wrong.instead(b""),
    "a page for people": wrong.instead(b"<html><body>Log in, please</body></html>"),
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
    "not found": wrong.status(404),
    "server error": wrong.status(500),
    "slow headers": wrong.slow_headers,
    "truncated": wrong.truncated,
    "reset": wrong.reset_at_once,
    "not JSON": wrong.instead(b"<html>"),
    "deep": wrong.instead(b'{"version":1,"root":' + b'{"type":"directory","entries":{"a":' * 50_000),
    "gzip bomb": wrong.instead(gzip.compress(bytes(512 * 1024 * 1024), 9)),
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
    "not found": wrong.status(404),
    "server error": wrong.status(500),
    "too many requests": wrong.status(429, Retry_After="1"),
    "slow headers": wrong.slow_headers,
    "slow body": wrong.slow_body,
    "stalled body": wrong.stalled_body,
    "truncated": wrong.truncated,
    "shortened": wrong.shortened,
    "reset": wrong.reset_at_once,
    "reset in the body": wrong.reset_in_body,
    "redirect loop": wrong.redirect_loop,
    "one bit": wrong.altered(wrong.flipped),
    "bytes behind its end": wrong.altered(lambda content: content + b"more"),
    "empty": wrong.instead(b""),
    "a page for people": wrong.instead(b"<html><body>Log in, please</body></html>"),
    "gzip bomb": wrong.instead(gzip.compress(bytes(512 * 1024 * 1024), 9)),
}
