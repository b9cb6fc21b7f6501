"""One way to write JSON: the same value is always the same bytes."""

from __future__ import annotations

import json


def encode(value: object) -> bytes:
    """UTF-8, sorted keys, no white space; what is not JSON raises TypeError or ValueError."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
