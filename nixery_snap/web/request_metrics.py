"""Counts answers: those of handlers, and those that are given without one (`hot_answers`).

Every request pays for it, so plain numbers are counted, which `settle` brings to the metrics when they are looked at.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from aiohttp import hdrs, web

from nixery_snap import metrics

# Handlers mark their answers with these: the image format that it is about, and the bytes that the client need not
# fetch because of it. The bytes count with each GET.
FORMAT: Final = web.ResponseKey("format", str)
SAVED_BYTES: Final = web.ResponseKey("saved_bytes", int)

HANDLER: Final = "handler"
MEMORY: Final = "memory"

_WITHOUT_BODY: Final = frozenset({204, 304})


class Tally:
    """Counts answers of one kind."""

    __slots__ = ("_answers", "_body_bytes", "_bytes", "_requests", "_saved_bytes")

    def __init__(self, route: str, image_format: str, status: int, answered_by: str) -> None:
        self._requests = metrics.HTTP_REQUESTS.labels(route, image_format, str(status), answered_by)
        self._bytes = metrics.HTTP_BYTES.labels(route, image_format)
        self._answers = self._body_bytes = self._saved_bytes = 0

    def add(self, answers: int, body_bytes: int, saved_bytes: int) -> None:
        """So many equal answers; the bytes are those of each."""
        self._answers += answers
        self._body_bytes += answers * body_bytes
        self._saved_bytes += answers * saved_bytes

    def settle(self) -> None:
        self._requests.inc(self._answers)
        self._bytes.inc(self._body_bytes)
        metrics.SAVED_BYTES.inc(self._saved_bytes)
        self._answers = self._body_bytes = self._saved_bytes = 0


_tallies: Final[list[Tally]] = []


@cache
def tally(route: str, image_format: str, status: int, answered_by: str) -> Tally:
    """The one of that kind: there are as many as words and status codes of this program."""
    made = Tally(route, image_format, status, answered_by)
    _tallies.append(made)
    return made


class InFlight:
    """Requests whose answer is being made."""

    count = 0


metrics.HTTP_IN_FLIGHT.set_function(lambda: InFlight.count)


def settle() -> None:
    """Bring the metrics up to date."""
    for one in _tallies:
        one.settle()


def tally_of(request: web.BaseRequest, response: web.StreamResponse, answered_by: str) -> Tally:
    return tally(_route(request), response.get(FORMAT, ""), response.status, answered_by)


def body_bytes(request: web.BaseRequest, response: web.StreamResponse) -> int:
    if request.method == hdrs.METH_HEAD or response.status in _WITHOUT_BODY:
        return 0
    return response.content_length or 0


def saved_bytes(request: web.BaseRequest, response: web.StreamResponse) -> int:
    saved = response.get(SAVED_BYTES, 0)
    return saved if saved and request.method == hdrs.METH_GET and response.status == 200 else 0


def _route(request: web.BaseRequest) -> str:
    """The name of the resource that was asked for, by which the application has added it."""
    # What is not HTTP has got no further than to aiohttp's parser, and a match is a mapping, often an empty one.
    if not isinstance(request, web.Request) or request._match_info is None:  # noqa: SLF001 - match_info asserts
        return "other"
    resource = request.match_info.route.resource
    return (resource.name if resource is not None else None) or "other"
