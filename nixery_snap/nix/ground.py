"""What Nix's error messages have to do with the machine, and not with what was asked of it."""

from __future__ import annotations

import re
from typing import Final

from nixery_snap.errors import NixDaemonUnreachable, NixError, NixStoreForbidden, NixStoreFull

_MESSAGE_LENGTH: Final = 1000
_GROUND: Final = (
    (re.compile(r"cannot connect to (socket|daemon)|cannot open connection to"), NixDaemonUnreachable),
    (re.compile(r"No space left on device|database or disk is full|Disk quota exceeded"), NixStoreFull),
    (
        re.compile(r"(/nix/var/nix|/nix/store)\S*'?: (Permission denied|Read-only file system)"),
        NixStoreForbidden,
    ),
)


def ground_error(message: str) -> NixError | None:
    """None when it is about something else."""
    line = " ".join(message.split())[:_MESSAGE_LENGTH]
    return next((kind(line) for pattern, kind in _GROUND if pattern.search(message)), None)
