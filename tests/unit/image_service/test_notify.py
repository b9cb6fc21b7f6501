"""What systemd is told."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from nixery_snap.image_service.notify import notified, notify


async def test_ready_fed_and_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        async with notified():
            assert sock.recv(100) == b"READY=1"
            await asyncio.sleep(0.2)
        said = [sock.recv(100)]
        while said[-1] != b"STOPPING=1":
            said.append(sock.recv(100))
        assert said.count(b"WATCHDOG=1") > 2


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
