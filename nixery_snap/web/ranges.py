"""Conditions and ranges of requests (RFC 9110, sections 13 and 14). Entity tags are given with their quotes."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

UNSATISFIABLE: Final = (-1, -1)
_RANGE: Final = re.compile(r"([0-9]{0,40})-([0-9]{0,40})")


def not_modified(request: web.Request, etag: str) -> bool:
    """Whether the client has it already (RFC 9110, section 13.1.2)."""
    wanted = request.headers.get("If-None-Match")
    if wanted is None:
        return False
    tags = (tag.strip().removeprefix("W/") for tag in wanted.split(","))
    return any(tag in {"*", etag} for tag in tags)


def asked_range(request: web.Request, etag: str, size_bytes: int) -> tuple[int, int] | None:
    """The asked half-open byte range, None for all of it, or UNSATISFIABLE. HEAD has no ranges.

    Several ranges at once are answered with the whole, which RFC 9110 leaves to the server.
    """
    header = request.headers.get("Range", "")
    unit, _, ranges = header.partition("=")
    if request.method != "GET" or unit.strip().lower() != "bytes" or "," in ranges:
        return None
    if request.headers.get("If-Range", etag) != etag:
        return None
    match = _RANGE.fullmatch(ranges.strip())
    if match is None or ranges.strip() == "-":
        return UNSATISFIABLE
    first, last = match.groups()
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start, end = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return UNSATISFIABLE
    return (start, end) if start < end else UNSATISFIABLE
