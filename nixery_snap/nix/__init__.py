"""Nix's own concepts and formats, pure: no I/O, no asyncio, no logging."""
