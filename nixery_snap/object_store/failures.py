"""What goes wrong in a backend, in this program's words."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Final

from obstore.exceptions import BaseError, GenericError, PermissionDeniedError, UnauthenticatedError

from nixery_snap import metrics
from nixery_snap.errors import StorageError, StorageForbidden, StorageFull, StorageUnavailable

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN: Final = {errno.EROFS, errno.EACCES, errno.EPERM}
# Statuses that another try would not change.
_REFUSED: Final = re.compile(r"status code: 4(?!08|29)\d\d")
_REASON_LENGTH: Final = 300


def _kind(error: OSError | BaseError) -> type[StorageError]:
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return StorageForbidden
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _FULL:
            return StorageFull
        return StorageForbidden if error.errno in _FORBIDDEN else StorageError
    # obstore's writers raise bare OSErrors.
    vendors = isinstance(error, GenericError) or type(error) is OSError
    return StorageUnavailable if vendors and not _REFUSED.search(str(error)) else StorageError


@contextlib.contextmanager
def translated(key: str) -> Iterator[None]:
    """Vendor and operating system errors become ours."""
    try:
        yield
    except (OSError, BaseError) as error:
        metrics.STORAGE_ERRORS.inc()
        # The first line says it; the others hold whole requests.
        message = f"the object store failed at {key}: {str(error).partition(chr(10))[0][:_REASON_LENGTH]}"
        raise _kind(error)(message) from error
