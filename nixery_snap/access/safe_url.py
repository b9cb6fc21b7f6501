"""Whether what a URL answers can be believed."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_safe(url: str) -> bool:
    """By https, or from this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https"
        or (parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"})
    )
