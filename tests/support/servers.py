"""HTTP servers of the tests' own, each in a thread, with a thread for each connection."""

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def reset(self) -> None:
        """End the connection as a crash does: what has been sent may be lost too."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class Server(ThreadingHTTPServer):
    """On a port of its own. `over` is set at the end, for answers that take their time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            socket.create_connection(("127.0.0.1", self.server_port)).close()
            thread.join()
            self.server_close()

    def _serve(self) -> None:
        """Until `over`, and one connection more. Unlike serve_forever it wakes up for requests alone."""
        while not self.over.is_set():
            self.handle_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients hang up, and are hung up on
            super().handle_error(request, client_address)
