"""Names of derivations and store paths: a package's name, then perhaps a version (Nix, `builtins.parseDrvName`)."""

from __future__ import annotations

import re
from typing import Final

_VERSION: Final = re.compile(r"-[^a-zA-Z]")


def without_version(name: str) -> str:
    """`openssl` for `openssl-3.0.14-bin`: what comes before the first dash that no letter follows."""
    match = _VERSION.search(name)
    return name[: match.start()] if match else name
