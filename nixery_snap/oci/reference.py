"""Repository names and tags (OCI distribution-spec, "Pulling manifests")."""

from __future__ import annotations

import re

from nixery_snap.errors import InvalidFormat, InvalidName

MAX_NAME_LENGTH = 255  # host and name together, for many clients
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


def check_name(name: str) -> str:
    """Return `name` when it is a repository name, else raise InvalidName."""
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidName(name, f"it is {len(name)} characters long, clients take at most {MAX_NAME_LENGTH}")
    if not _NAME.fullmatch(name):
        raise InvalidName(
            name, "use lower-case package names separated by '/', each of letters, digits and single . _ or -"
        )
    return name


def check_tag(tag: str) -> str:
    """Return `tag` when it is one, else raise InvalidFormat."""
    if not _TAG.fullmatch(tag):
        raise InvalidFormat(
            "tag", tag, "at most 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
        )
    return tag
