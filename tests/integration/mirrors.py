"""Something between a node and a registry: nginx with TLS of a kind, or what lets blobs wait."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.integration.need import need
from tests.integration.processes import Daemon, free_port, run
from tests.integration.server import request

NGINX = """\
daemon off;
{user}
worker_processes 1;
pid {home}/pid;
error_log {home}/error.log;
events {{}}
http {{
  log_format plain '$status $http_user_agent $request_uri';
  access_log {home}/access.log plain;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {home}/certificate.pem;
    ssl_certificate_key {home}/key.pem;
    if ($http_x_pass != "let me in") {{ return 403; }}
    location /v2/ {{ proxy_pass http://{upstream}/v2/; }}
    location /mirror/of/it/ {{ proxy_pass http://{upstream}/v2/; }}
  }}
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
        return (self.home / "access.log").read_text().splitlines()


@contextlib.contextmanager
def tls_mirror(home: Path, upstream: str) -> Iterator[TlsMirror]:
    need("nginx", "openssl")
    home.mkdir()
    mirror = TlsMirror(home, free_port())
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    run("openssl", "req", "-x509", *kind, *names, "-keyout", home / "key.pem", "-out", mirror.certificate)
    config = home / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(NGINX.format(home=home, port=mirror.port, upstream=upstream, user=user))
    daemon = Daemon(["nginx", "-c", config, "-e", home / "error.log", "-p", home], log=home / "out.log")

    def ready() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", mirror.port), 2):
            return True
        return False

    daemon.wait_ready(ready)
    try:
        yield mirror
    finally:
        daemon.stop()


class Waiting(BaseHTTPRequestHandler):
    """One connection; manifests are passed on, and who asks for a blob waits until they give up."""

    server: "WaitingMirror"
    protocol_version = "HTTP/1.1"

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

    do_HEAD = do_GET  # noqa: N815 - the base class asks for it

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


class WaitingMirror(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), Waiting)
        self.upstream_port = upstream_port
        self.asked, self.given_up = threading.Event(), threading.Event()


@contextlib.contextmanager
def waiting_mirror(upstream_port: int) -> Iterator[WaitingMirror]:
    with WaitingMirror(upstream_port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
