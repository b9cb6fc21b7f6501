"""Values of the header Authorization; nothing here shows a secret in an error."""

from __future__ import annotations

import base64
import netrc
import re
from pathlib import Path
from typing import Final

from nixery_snap.errors import SourceError

_MAX_TOKEN_BYTES: Final = 64 * 1024


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def from_token_file(path: Path) -> str:
    """The file holds a token, `user:password`, or a whole value that begins with Basic or Bearer.

    Raises SourceError.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_TOKEN_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SourceError(f"the token file {path} cannot be read: {reason}") from None
    if not text or not text.isprintable():
        raise SourceError(f"the token file {path} must hold a token on one line")
    if re.match(r"(Basic|Bearer) ", text):
        return text
    # Forges take any user name beside a token.
    user, colon, password = text.partition(":")
    return basic(user, password) if colon else basic("x-access-token", text)


def from_netrc(path: Path, host: str) -> str | None:
    """Raises SourceError."""
    try:
        found = netrc.netrc(path).authenticators(host)
    except OSError as error:
        raise SourceError(f"the netrc file {path} cannot be read: {error.strerror}") from None
    except (netrc.NetrcParseError, UnicodeDecodeError):
        raise SourceError(f"the netrc file {path} is malformed") from None
    return basic(found[0], found[2]) if found else None
