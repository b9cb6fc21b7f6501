"""Bytes that come from elsewhere while they are sent, never more of them in memory than a little ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from nixery_snap.errors import StorageError
from nixery_snap.web.connections import limits_of
from nixery_snap.web.request_log import REQUEST_ID_KEY, server_failed

log = structlog.get_logger()

Refusal = Callable[[int, str, dict[str, str]], web.Response]
"""Makes the answer to a request that gets nothing, of a status, a message and headers, in the words of its protocol."""


class StreamedResponse(web.StreamResponse):
    """`length` bytes, which `pieces` yields. When even the first one fails, the answer is that of `refuse`."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        length: int,
        refuse: Refusal,
        *,
        status: int,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(status=status, headers=dict(headers))
        self._pieces, self._left, self._refuse = pieces, length, refuse
        self.content_length = length

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends head and body."""
        if request.method == "HEAD":
            return await super().prepare(request)
        try:
            piece = await anext(self._pieces, b"")
        except StorageError as error:  # the application is done with the request, so this is said here
            log.error("request-failed", path=request.path[:300], error=str(error))
            piece = self._failed(request)
        writer = await super().prepare(request)
        transport = request.transport
        try:
            while piece:
                async with asyncio.timeout(limits_of(request).stall_seconds):
                    await self.write(piece)
                self._left -= len(piece)
                piece = await anext(self._pieces, b"")
            if self._left:
                raise StorageError(f"{self._left} bytes are missing")
            await self.write_eof()
        except BaseException as error:
            if transport is not None:
                transport.abort()  # the head promised more bytes: nothing else can follow on this connection
            if isinstance(error, StorageError):
                log.warning("body-broken-off", path=request.path[:300], reason=str(error))
            if isinstance(error, StorageError | TimeoutError):
                raise ConnectionResetError("the body has come to an early end") from None
            raise
        return writer

    def _failed(self, request: web.BaseRequest) -> bytes:
        """Become the answer that there is none now; returns its body."""
        message = server_failed(request.get(REQUEST_ID_KEY, ""))
        refusal = self._refuse(503, message, {"Retry-After": "10"})
        content = bytes(refusal.body) if isinstance(refusal.body, bytes | bytearray) else b""
        self.set_status(refusal.status)
        self.headers.clear()
        self.headers.update(refusal.headers)
        self.content_length = self._left = len(content)
        return content
