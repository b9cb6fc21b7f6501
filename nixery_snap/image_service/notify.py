"""Tells systemd how this process is doing (sd_notify(3)); does nothing when it was not started by systemd."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


def notify(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())


@asynccontextmanager
async def notified() -> AsyncIterator[None]:
    """Ready inside, stopping behind; the watchdog is fed meanwhile, by the loop that it watches."""
    notify("READY=1")
    feeding = asyncio.ensure_future(_feed())
    try:
        yield
    finally:
        feeding.cancel()
        notify("STOPPING=1")


async def _feed() -> None:
    microseconds = int(os.environ.get("WATCHDOG_USEC") or 0)
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while microseconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 2e6)
