"""The listening socket: bound by us, or held by systemd, which then outlives us (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import sys
from typing import Final, NoReturn

from nixery_snap.errors import SettingsError

_HANDED_OVER: Final = 3  # SD_LISTEN_FDS_START
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def handed_over() -> socket.socket | None:
    """The socket that systemd has bound for this process. Raises SettingsError."""
    pid, count, _ = (os.environ.pop(variable, "") for variable in _VARIABLES)
    if pid != str(os.getpid()):
        return None
    if count != "1":
        raise SettingsError("listen", f"systemd hands over {count} sockets: give the unit one ListenStream=")
    sock = socket.socket(fileno=_HANDED_OVER)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def start_again(sock: socket.socket | None) -> NoReturn:
    """Become a new process of the same command line, and hand it the socket."""
    if sock is not None:
        os.dup2(sock.fileno(), _HANDED_OVER)
        os.set_inheritable(_HANDED_OVER, True)
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - a list, no shell


def bind(address: str, key: str, *, shared: bool = False) -> socket.socket:
    """To HOST:PORT, which the setting `key` says; `shared` with others that do the same. Raises SettingsError."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(found)
        sock.setblocking(False)
    except OSError as error:
        raise SettingsError(key, f"cannot listen on {address}: {error.strerror or error}") from error
    return sock


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
