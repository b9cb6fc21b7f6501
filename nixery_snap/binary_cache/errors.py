"""Errors as plain text: Nix shows the body of an answer that it does not like.

What is not there, or cannot be, is a 404: Nix takes that as a plain no and asks its next substituter, while
any other 4xx ends what it is doing. A 5xx it tries again. It tells nothing but where to look.
"""

from __future__ import annotations

from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from nixery_snap import errors
from nixery_snap.web.request_log import EXPECTED, REQUEST_ID_KEY, server_failed

log = structlog.get_logger()

_RETRY_AFTER_SECONDS: Final = 10

# The most specific class counts; a test sees to it that every error is covered.
STATUSES: Final[dict[type[errors.NixerySnapError], int]] = {
    errors.InvalidInput: 404,
    errors.NotFound: 404,
    errors.ImageError: 500,
    errors.NixError: 500,
    errors.SubstituterError: 404,  # what an upstream has wrong, we have not
    errors.SubstituterUnreachable: 503,
    errors.TooManyRequests: 503,
    errors.ShuttingDown: 503,
    errors.AccessError: 403,
    errors.ContainerdError: 500,
    errors.StorageError: 500,
    errors.StorageUnavailable: 503,
    errors.StorageFull: 503,
    errors.SourceError: 503,
    errors.SettingsError: 500,
}


def status_of(error: errors.NixerySnapError) -> int:
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """One line of text, kept by nobody: what is not there now may be published the next moment."""
    line = " ".join(message.encode("utf-8", "replace").decode().split())
    return web.Response(
        status=status, text=f"{line}\n", headers={"Cache-Control": "no-store", **(headers or {})}
    )


def missing(message: str) -> web.Response:
    response = refusal(404, message)
    response[EXPECTED] = True
    return response


@web.middleware
async def plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers everything that fails below, so that nothing reaches the application around this one."""
    request_id = request.get(REQUEST_ID_KEY, "")
    try:
        return await handler(request)
    except errors.NixerySnapError as error:
        status = status_of(error)
        if status < 500:
            return missing(str(error))
        if isinstance(error, errors.SubstituterUnreachable):
            # Not a 404, which Nix would remember for an hour.
            text = "no cache that this one reads through answers; ask again later"
            return refusal(status, text, {"Retry-After": str(_RETRY_AFTER_SECONDS)})
        log.error("request-failed", path=request.raw_path[:300], error=str(error), exc_info=True)
        return refusal(status, server_failed(request_id))
    except (web.HTTPMethodNotAllowed, web.HTTPNotFound):
        if request.method not in {"GET", "HEAD"}:
            message = "this binary cache is read-only; publish with nixery-snap push on its server"
            return refusal(405, message, {"Allow": "GET, HEAD"})
        return missing("a binary cache has nothing at this path; begin with nix-cache-info")
    except (web.HTTPException, ConnectionError):
        raise
    except Exception:
        log.exception("request-crashed", path=request.raw_path[:300])
        return refusal(500, server_failed(request_id))
