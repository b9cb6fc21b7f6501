"""Listings of other caches, which nobody signs, are parsed with bounded memory."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Final

from nixery_snap.nix import listing
from nixery_snap.nix.file_tree import Node

_LARGE_BYTES: Final = 1 << 20
_large = threading.Lock()


def parse_listing(text: bytes) -> Node:
    """Blocking: large ones are parsed one at a time. Raises InvalidFormat."""
    with _large if len(text) > _LARGE_BYTES else nullcontext():
        return listing.parse(text)
