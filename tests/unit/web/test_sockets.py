"""What cannot be seen in an answer, but in how long clients wait for it."""

import contextlib
import os
import socket
import struct
from pathlib import Path

import pytest
from aiohttp import web

from nixery_snap.web.hot_answers import HotAnswers
from tests.unit.web.servers import LOOPS, serving


@pytest.mark.parametrize("loop_name", LOOPS)
def test_small_answers_do_not_wait_for_more(loop_name: str) -> None:
    async def no_delay(request: web.Request) -> web.Response:
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        return web.Response(text=str(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))

    app = web.Application()
    app.router.add_get("/", no_delay)
    with serving(loop_name, app, HotAnswers()) as server, server.connect() as client:
        assert client.get("/").body != b"0"


@pytest.mark.parametrize("loop_name", LOOPS)
def test_many_connections_at_once_are_queued(loop_name: str) -> None:
    with serving(loop_name, web.Application(), HotAnswers()) as server:
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        assert _backlog(server.address[1]) == min(1024, most)


def _backlog(port: int) -> int:
    """Of the listening socket in this process, as the kernel keeps it."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.getsockname()[1] == port:
                    # struct tcp_info of a listening socket: tcpi_sacked is the longest queue (linux/tcp.h).
                    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
                    return int(struct.unpack_from("I", info, 28)[0])
    raise AssertionError(f"nothing listens on {port}")
