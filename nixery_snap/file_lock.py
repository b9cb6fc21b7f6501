"""Alone with a file, also among processes."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

_POLL_SECONDS: Final = 0.05


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """`path`: a file or directory that is there; it stays as it is. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
