"""Errors as HTTP: one table from this program's errors to OCI codes and statuses.

Whatever a client or a package can be blamed for is a 4xx, because Docker and skopeo show the message of
those and hide that of a 5xx. A 5xx tells nothing but where to look, or that one should come back.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from nixery_snap import errors
from nixery_snap.oci import canonical_json
from nixery_snap.web.request_log import server_failed

# The most specific class counts; a test sees to it that every error is covered.
TABLE: Final[dict[type[errors.NixerySnapError], tuple[str, int]]] = {
    errors.InvalidInput: ("NAME_INVALID", 400),
    errors.InvalidDigest: ("DIGEST_INVALID", 400),
    errors.UnsupportedSystem: ("MANIFEST_UNKNOWN", 404),
    errors.NotFound: ("MANIFEST_UNKNOWN", 404),
    errors.BlobNotFound: ("BLOB_UNKNOWN", 404),
    errors.ImageError: ("MANIFEST_UNKNOWN", 404),
    errors.InvalidImage: ("UNKNOWN", 500),
    errors.EvaluationFailed: ("MANIFEST_UNKNOWN", 404),
    errors.EvaluationTimedOut: ("MANIFEST_UNKNOWN", 404),
    errors.EvaluationTooBig: ("MANIFEST_UNKNOWN", 404),
    errors.ExperimentalFeatureMissing: ("MANIFEST_UNKNOWN", 404),
    errors.RealisationFailed: ("MANIFEST_UNKNOWN", 404),
    errors.RealisationTimedOut: ("MANIFEST_UNKNOWN", 404),
    errors.NixTooOld: ("MANIFEST_UNKNOWN", 404),
    errors.StillWorking: ("UNAVAILABLE", 503),
    errors.ShuttingDown: ("UNAVAILABLE", 503),
    errors.TooManyRequests: ("TOOMANYREQUESTS", 429),
    errors.AccessError: ("DENIED", 403),
    errors.Unauthenticated: ("UNAUTHORIZED", 401),
    errors.IssuerUnreachable: ("UNAVAILABLE", 503),
    errors.NixError: ("UNKNOWN", 500),
    errors.SubstituterError: ("MANIFEST_UNKNOWN", 404),
    errors.SubstituterUnreachable: ("UNKNOWN", 503),
    errors.ContainerdError: ("UNKNOWN", 500),
    errors.StorageError: ("UNKNOWN", 500),
    errors.StorageUnavailable: ("UNAVAILABLE", 503),
    errors.StorageFull: ("UNAVAILABLE", 503),
    errors.SourceError: ("UNKNOWN", 503),
    errors.SettingsError: ("UNKNOWN", 500),
}
_RETRY_AFTER_SECONDS: Final = 10


def code_and_status(error: errors.NixerySnapError) -> tuple[str, int]:
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), ("UNKNOWN", 500))


def error_response(error: errors.NixerySnapError, request_id: str) -> web.Response:
    """An OCI error body (distribution-spec, "Error Codes")."""
    code, status = code_and_status(error)
    headers = {}
    if isinstance(error, errors.StillWorking | errors.TooManyRequests | errors.ShuttingDown):
        headers["Retry-After"] = str(error.retry_after_seconds)
    elif isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = error.challenge
    elif status >= 500:
        if status == 503:
            headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
        return oci_error(code, status, server_failed(request_id), headers=headers)
    detail = None
    if isinstance(error, errors.PackagesUnavailable):
        detail = [
            {"name": problem.name, "kind": problem.kind, "suggestions": list(problem.suggestions)}
            for problem in error.problems
        ]
    return oci_error(code, status, str(error), detail, headers)


def oci_error(
    code: str, status: int, message: str, detail: Any = None, headers: dict[str, str] | None = None
) -> web.Response:
    # Text from outside can hold lone surrogates, which UTF-8 has no bytes for.
    plain = message.encode("utf-8", "replace").decode()
    body = canonical_json.encode({"errors": [{"code": code, "message": plain, "detail": detail}]})
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
