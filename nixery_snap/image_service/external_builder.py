"""nix-snapshotter's `external_builder`: has the image service realise a store path, or Nix when it is not there.

It is started once for each store path, so it imports nothing but what Python has imported by then, and the one call it
makes is gRPC written out (gRPC over HTTP/2; RFC 9113; RFC 7541, section 6.2.2 for the header fields).
"""

import os
import sys
from _socket import AF_UNIX, socket  # what the module socket wraps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_LISTEN_VARIABLE: "Final" = "NIXERY_SNAP_IMAGE_SERVICE__LISTEN"
_DEFAULT_SOCKET: "Final" = "/run/nixery-snap/image.sock"
_METHOD: "Final" = b"/nixery_snap.node.v1.StorePaths/Realise"
_TIMEOUT_SECONDS: "Final" = 3600
_PREFACE: "Final" = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
_ACK: "Final" = 0x1
_END_STREAM: "Final" = 0x1
_END_HEADERS: "Final" = 0x4


def main() -> None:
    """`OUT_LINK STORE_PATH`, as nix-snapshotter calls it."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} OUT_LINK STORE_PATH")
    realise(*sys.argv[1:])


def realise(out_link: str, store_path: str) -> None:
    """By the image service, else by becoming Nix: this process ends with the status of whoever did it."""
    path = os.environ.get(_LISTEN_VARIABLE, "").removeprefix("unix://") or _DEFAULT_SOCKET
    if not ask(path, os.path.abspath(out_link), store_path):  # noqa: PTH100 - pathlib would cost a tenth of the time
        arguments = ("nix-store", "--add-root", out_link, "--indirect", "--realise", store_path)
        os.execvp(arguments[0], arguments)  # noqa: S606 - a list, no shell


def ask(socket_path: str, out_link: str, store_path: str) -> bool:
    """Whether the image service did it."""
    try:
        connection = socket(AF_UNIX)
        connection.settimeout(_TIMEOUT_SECONDS)
        connection.connect(socket_path)
        connection.sendall(_request(out_link.encode(), store_path.encode()))
        return _is_done(connection)
    except OSError:
        return False


def _request(out_link: bytes, store_path: bytes) -> bytes:
    message = _field(1, out_link) + _field(2, store_path)
    headers = b"".join(
        b"\0" + _length(name) + name + _length(value) + value
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", _METHOD),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )
    )
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
        + _frame(_DATA, _END_STREAM, 1, body)
    )


def _is_done(connection: socket) -> bool:
    """An answer comes with success only; a refusal is nothing but headers."""
    done = False
    while len(head := _read(connection, 9)) == 9:
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        payload = _read(connection, size)
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            connection.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind in {_RST_STREAM, _GOAWAY}:
            return done
        elif kind == _DATA:
            done = True
        if kind in {_DATA, _HEADERS} and flags & _END_STREAM:
            return done
    return False


def _read(connection: socket, size: int) -> bytes:
    """Fewer bytes only at the end."""
    content = b""
    while len(content) < size and (more := connection.recv(size - len(content))):
        content += more
    return content


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _field(number: int, value: bytes) -> bytes:
    """A protobuf field of bytes."""
    length, size = b"", len(value)
    while size > 0x7F:
        length, size = length + bytes((size & 0x7F | 0x80,)), size >> 7
    return bytes((number << 3 | 2,)) + length + bytes((size,)) + value


def _length(text: bytes) -> bytes:
    """Of a header's name or value; all of ours are shorter than 127 bytes, and none is compressed."""
    return bytes((len(text),))


if __name__ == "__main__":
    main()
