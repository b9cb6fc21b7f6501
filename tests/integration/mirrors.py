"""Something between a node and a registry: nginx with TLS of a kind, or what lets blobs wait."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.need import need
from tests.integration.nginx import access_log, run_nginx
from tests.integration.processes import free_port
from tests.integration.server import request
from tests.support.certificates import self_signed
from tests.support.servers import Handler, Server

HTTP = """
  log_format plain '$status $http_user_agent $request_uri';
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {home}/certificate.pem;
    ssl_certificate_key {home}/key.pem;
    if ($http_x_pass != "let me in") {{ return 403; }}
    location /v2/ {{ proxy_pass http://{upstream}/v2/; }}
    location /mirror/of/it/ {{ proxy_pass http://{upstream}/v2/; }}
  }}
"""


@dataclass(frozen=True)
class TlsMirror:
    """Of a registry, for who has the header `X-Pass: let me in`: at `/v2/`, and at `/mirror/of/it/` too."""

    home: Path
    port: int

    @property
    def certificate(self) -> Path:
        return self.home / "certificate.pem"

    def asked(self) -> list[str]:
        """Status, who asked, and for what."""
        return access_log(self.home)


@contextlib.contextmanager
def tls_mirror(home: Path, upstream: str) -> Iterator[TlsMirror]:
    need("openssl")
    home.mkdir()
    mirror = TlsMirror(home, free_port())
    self_signed(mirror.certificate, home / "key.pem")

    def ready() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", mirror.port), 2):
            return True
        return False

    with run_nginx(home, HTTP.format(home=home, port=mirror.port, upstream=upstream), ready):
        yield mirror


class Waiting(Handler):
    """Manifests are passed on, and who asks for a blob waits until they give up."""

    server: "WaitingMirror"

    def do_GET(self) -> None:
        if "/blobs/" in self.path:
            self.server.asked.set()
            self.connection.recv(1)  # nothing more comes before the end
            self.server.given_up.set()
            self.close_connection = True
            return
        passed_on = {name: value for name, value in self.headers.items() if name.lower() == "accept"}
        answer = request(self.server.upstream_port, self.command, self.path, passed_on)
        self.send_response(answer.status)
        for name in ("content-type", "content-length", "docker-content-digest"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(answer.body)

    do_HEAD = do_GET


class WaitingMirror(Server):
    def __init__(self, upstream_port: int) -> None:
        super().__init__(Waiting)
        self.upstream_port = upstream_port
        self.asked, self.given_up = threading.Event(), threading.Event()
