"""A range of a file as an answer, by `sendfile(2)`, on any event loop.

`web.FileResponse` asks the loop for sendfile, which uvloop does not have, and then copies through a thread.
Here the kernel sends from the page cache straight to the socket: non-blocking, and waiting on the loop for
room in the socket's buffer. sendfile has no such thing as "do not wait for the disk", so what is about to be
sent is looked at first, and if it is not in the page cache a worker thread reads it there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from nixery_snap.web.connections import limits_of, reset, unacknowledged

PIECE_BYTES: Final = (
    1024 * 1024
)  # looked up, read ahead and sent at a time; others on the loop wait that long
_PROBE_STRIDE_BYTES: Final = 128 * 1024  # what Linux reads ahead at a time unless told otherwise


class FileRangeResponse(web.StreamResponse):
    """`length` bytes of a regular file from `start` on. The file must not change while it is sent."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        start: int,
        length: int,
        *,
        status: int = 200,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(status=status, headers=dict(headers))
        self._path, self._first, self._range_length = path, start, length
        self.content_length = length

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends head and body. Raises OSError before anything is sent when the file cannot be opened."""
        file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            writer = await super().prepare(request)
            if writer is not None and request.method != "HEAD" and self._range_length:
                await self._send_body(request, writer, file)
            await self.write_eof()
            return writer
        finally:
            os.close(file)

    async def _send_body(self, request: web.BaseRequest, writer: AbstractStreamWriter, file: int) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        sock = transport.get_extra_info("socket")
        if sock is None or transport.get_extra_info("sslcontext") is not None:
            await self._copy_body(writer, file)
            return
        await _flush(transport, writer)
        try:
            with _duplicate(sock.fileno()) as out:
                await send_file(out, file, self._first, self._range_length, limits_of(request).stall_seconds)
        except BaseException:
            reset(transport)  # the head promised more bytes: nothing else can follow on this connection
            raise

    async def _copy_body(self, writer: AbstractStreamWriter, file: int) -> None:
        position, end = self._first, self._first + self._range_length
        while position < end:
            chunk = await asyncio.to_thread(os.pread, file, min(256 * 1024, end - position), position)
            if not chunk:
                raise ConnectionResetError("the file is shorter than it was")
            await writer.write(chunk)
            position += len(chunk)


async def send_file(out: int, file: int, start: int, length: int, stall_seconds: float) -> None:
    """From a file to a non-blocking socket. `out` must not be known to the loop (a transport's is)."""
    position, end = start, start + length
    while position < end:
        piece_end = min(end, position + PIECE_BYTES)
        if not is_cached(file, position, piece_end):
            await asyncio.to_thread(_read_ahead, file, position, piece_end)
        while position < piece_end:
            try:
                sent = os.sendfile(out, file, position, piece_end - position)
            except BlockingIOError:
                await _writable(out, stall_seconds)
                continue
            if sent == 0:
                raise ConnectionResetError("the file is shorter than it was")
            position += sent
        await asyncio.sleep(0)  # a fast reader must not keep the loop to itself


def is_cached(file: int, start: int, end: int) -> bool:
    """Whether reading this range will hardly wait for a disk. Where the file system cannot tell: no."""
    byte = [bytearray(1)]
    for position in (*range(start, end, _PROBE_STRIDE_BYTES), end - 1):
        try:
            os.preadv(file, byte, position, os.RWF_NOWAIT)
        except OSError:  # EAGAIN: not in memory; EOPNOTSUPP: not known
            return False
    return True


def _read_ahead(file: int, start: int, end: int) -> None:
    os.posix_fadvise(file, start, PIECE_BYTES * 4, os.POSIX_FADV_WILLNEED)
    buffer = bytearray(256 * 1024)
    while start < end and (count := os.preadv(file, [buffer], start)):
        start += count


async def _flush(transport: asyncio.WriteTransport, writer: AbstractStreamWriter) -> None:
    """Until nothing that was written before waits in the transport."""
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high=0)
    try:
        writer.send_headers()
        await writer.drain()
    finally:
        transport.set_write_buffer_limits(high=high, low=low)


async def _writable(out: int, stall_seconds: float) -> None:
    """The socket has room again only after much was read: a slow client is told from one that reads nothing."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    timer: asyncio.TimerHandle

    def look(left: int) -> None:
        nonlocal timer
        if (now_left := unacknowledged(out)) != left:
            timer = loop.call_later(stall_seconds, look, now_left)
        elif not ready.done():
            ready.set_exception(ConnectionResetError("the client has stopped reading"))

    timer = loop.call_later(stall_seconds, look, -1)
    loop.add_writer(out, _wake, ready)
    try:
        await ready
    finally:
        timer.cancel()
        loop.remove_writer(out)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


@contextmanager
def _duplicate(descriptor: int) -> Iterator[int]:
    """Loops refuse to watch a transport's own descriptor, and close it under us when the client goes."""
    copy = os.dup(descriptor)
    try:
        yield copy
    finally:
        os.close(copy)
