"""nginx with the tests' own configuration."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.integration.need import need
from tests.integration.processes import Daemon

_CONFIG = """\
daemon off;
{user}
worker_processes 1;
pid {home}/pid;
error_log {home}/error.log;
events {{}}
http {{
  {http}
  access_log {home}/access.log plain;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
}}
"""


def access_log(home: Path) -> list[str]:
    return (home / "access.log").read_text().split("\n")[:-1]  # the last one may still be being written


@contextlib.contextmanager
def run_nginx(home: Path, http: str, ready: Callable[[], bool]) -> Iterator[None]:
    """`http` goes into the section of that name, and says how the access log's `plain` looks."""
    need("nginx")
    config = home / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # the directories of the tests are closed to all others
    config.write_text(_CONFIG.format(user=user, home=home, http=http))
    daemon = Daemon(["nginx", "-c", config, "-e", home / "error.log", "-p", home], log=home / "out.log")
    daemon.wait_ready(ready, seconds=60)
    try:
        yield
    finally:
        daemon.stop()
