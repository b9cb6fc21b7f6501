"""Serves `/metrics`, on an address of its own, of all processes that share the work."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

import structlog
from aiohttp import web

from nixery_snap import metrics
from nixery_snap.listening import address_of, bind

log = structlog.get_logger()

_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_WAIT_SECONDS: Final = 5.0  # for another process
_MAX_BYTES: Final = 16 * 1024 * 1024  # of what it says

Settle = Callable[[], None]
"""Brings the metrics up to date with what was only noted for speed."""


@dataclass(frozen=True, slots=True)
class MetricsPart:
    """What one process has to do with it: the one that has `listening` serves, and asks the `others`; each of
    these answers at its end of a pair of sockets, `asked`.
    """

    listening: socket.socket | None = None
    others: tuple[socket.socket, ...] = ()
    asked: socket.socket | None = None


def metrics_parts(address: str, processes: int = 1) -> list[MetricsPart]:
    """One for each process that is going to be forked; `address` is HOST:PORT, or empty. Raises SettingsError."""
    if not address:
        return [MetricsPart()] * processes
    pairs = [socket.socketpair() for _ in range(processes - 1)]
    serving = MetricsPart(bind(address, "metrics.listen"), tuple(ours for ours, _ in pairs))
    return [serving, *(MetricsPart(asked=theirs) for _, theirs in pairs)]


@asynccontextmanager
async def metrics_served(part: MetricsPart, settle: Settle = lambda: None) -> AsyncIterator[None]:
    """As long as this is entered, the process does its part."""

    def snapshot() -> metrics.Snapshot:
        settle()
        return metrics.snapshot()

    if part.asked is not None:
        answering = asyncio.ensure_future(_answer(part.asked, snapshot))
        try:
            yield
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
    elif part.listening is not None:
        async with _serve(part.listening, part.others, snapshot):
            yield
    else:
        yield


async def _answer(asked: socket.socket, snapshot: Callable[[], metrics.Snapshot]) -> None:
    """For each byte that comes: it, as a number, and the metrics of this process, as one line of JSON."""
    reader, writer = await asyncio.open_unix_connection(sock=asked)
    try:
        while question := await reader.read(1):
            writer.write(json.dumps([question[0], snapshot()]).encode() + b"\n")
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def _serve(
    listening: socket.socket,
    others: tuple[socket.socket, ...],
    snapshot: Callable[[], metrics.Snapshot],
) -> AsyncIterator[None]:
    streams = [await asyncio.open_unix_connection(sock=other, limit=_MAX_BYTES) for other in others]
    turn, questions = asyncio.Lock(), itertools.cycle(range(256))

    async def ask(
        number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> metrics.Snapshot:
        writer.write(bytes([number]))
        while line := await reader.readline():
            answered, told = json.loads(line)
            if answered == number:  # else it comes too late for the one who asked
                return cast("metrics.Snapshot", told)
        raise ConnectionResetError

    async def get_metrics(_request: web.Request) -> web.Response:
        # Without one of them, counters would go down and up again: rather nothing at all.
        try:
            async with asyncio.timeout(_WAIT_SECONDS), turn:
                number = next(questions)
                told = await asyncio.gather(*(ask(number, *stream) for stream in streams))
        except (OSError, ValueError) as error:
            reason = f"another process does not answer: {type(error).__name__}"
            log.warning("metrics-incomplete", reason=reason)
            return web.Response(status=503, text=f"{reason}\n")
        content = metrics.exposition([snapshot(), *told])
        return web.Response(body=content, headers={"Content-Type": _CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", get_metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        log.info("metrics-served", listen=address_of(listening))
        yield
    finally:
        await runner.cleanup()
        for _, writer in streams:
            writer.close()
