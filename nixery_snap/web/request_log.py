"""What ties an answer to the log."""

from __future__ import annotations

from typing import Final

from aiohttp import web

REQUEST_ID: Final = "X-Request-Id"
REQUEST_ID_KEY: Final = web.RequestKey("request_id", str)

# A handler marks an answer with this when its status is no failure for anybody: asking a binary cache for
# what it lacks is how clients find out. Such an answer is in no log but the log of all requests.
EXPECTED: Final = web.ResponseKey("expected", bool)


def server_failed(request_id: str) -> str:
    """All that a client is told of a 5xx."""
    return f"the server failed; its log says why under request {request_id}"
