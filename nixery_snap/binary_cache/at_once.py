"""Narinfos that are at hand, answered before aiohttp has parsed the request (docs/decisions/0005).

A client asks for each narinfo of a closure once: what was asked before is no help, and aiohttp takes twenty
times as long for the answer as reading the file does.
"""

from __future__ import annotations

import hashlib
import re

from nixery_snap.binary_cache.app import NARINFO_HEADERS, NARINFO_ROUTE
from nixery_snap.nix.base32 import ALPHABET
from nixery_snap.ports import BinaryCache, UseKind, use
from nixery_snap.web.hot_answers import AtOnce
from nixery_snap.web.request_metrics import MEMORY, Tally, tally


def narinfos_at_once(cache: BinaryCache, prefix: str) -> AtOnce:
    """Answers what `make_cache_app`, mounted at `prefix`, would answer, with no id of the request.

    Only requests for a well-formed name, with no headers but those that every client sends and that change
    nothing: conditions, ranges, credentials and whatever else there may be are the application's.
    """
    repeatable = rb"(?i:(?:accept(?:-encoding)?: [ -~]*|connection: keep-alive)\r\n)*"
    request = re.compile(
        rb"(GET|HEAD) %b/([%b]{32})\.narinfo HTTP/1\.1\r\n"
        rb"(?i:host): [!-~]+\r\n%b(?:(?i:user-agent): [ -~]*\r\n%b)?\r\n"
        % (re.escape(prefix.encode()), ALPHABET.encode(), repeatable, repeatable)
    )
    headers = "".join(f"\r\n{name}: {value}" for name, value in NARINFO_HEADERS.items()).encode()

    counted = tally(NARINFO_ROUTE, "", 200, MEMORY)

    def answer(head: bytes) -> tuple[bytes, bytes, tuple[str, ...], int, Tally] | None:
        asked = request.fullmatch(head)
        if asked is None:
            return None
        hash_part = asked[2].decode()
        content = cache.narinfo_at_once(hash_part)
        if content is None:
            return None
        rest = (
            b'%b\r\nETag: "%b"\r\nAccept-Ranges: bytes\r\nContent-Length: %d\r\nServer: nixery-snap\r\n\r\n%b'
            % (
                headers,
                hashlib.sha256(content).hexdigest().encode(),
                len(content),
                body := content if asked[1] == b"GET" else b"",
            )
        )
        return b"HTTP/1.1 200 OK\r\nDate: ", rest, (use(UseKind.PATH, hash_part),), len(body), counted

    return answer
