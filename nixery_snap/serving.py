"""Runs the registry: sockets, worker processes, signals, graceful shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog
import uvloop
from aiohttp import web

from nixery_snap import reports
from nixery_snap.binary_cache.app import make_cache_app
from nixery_snap.binary_cache.at_once import narinfos_at_once
from nixery_snap.errors import NixerySnapError, SettingsError
from nixery_snap.registry.app import make_app
from nixery_snap.registry.context import Registry, new_memory
from nixery_snap.registry.packages import PACKAGE_SEARCH
from nixery_snap.service import open_service
from nixery_snap.settings import CACHE_PREFIX, Settings
from nixery_snap.web.hot_answers import HotAnswers, never, serve_hot
from nixery_snap.web.request_log import REQUEST_ID

log = structlog.get_logger()

_BACKLOG = 1024


def serve(settings: Settings, started: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; calls `started` with the address once requests are taken.

    Returns the exit code. Raises SettingsError, NixError.
    """
    sock = _bind(settings)
    address = _address(sock)
    if settings.workers == 1:
        uvloop.run(_serve(settings, sock, lambda: started(address)))
        return 0
    return _supervise(settings.model_copy(update={"listen": address}), lambda: started(address))


async def _serve(
    settings: Settings, sock: socket.socket, started: Callable[[], None], supervisor: int | None = None
) -> None:
    """`supervisor` is a descriptor that becomes readable when the process that watches over us is gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if supervisor is None:
        # Somebody at a terminal who asks twice does not want to wait for builds.
        loop.add_signal_handler(signal.SIGINT, lambda: os._exit(130) if stop.is_set() else stop.set())
    else:
        loop.add_reader(supervisor, stop.set)
    limits = settings.limits
    async with open_service(settings) as service:
        registry = Registry(
            service.pipeline,
            service.blobs,
            service.grammar,
            settings.nix.wait_timeout,
            new_memory(limits.memory_cache),
            settings.index_formats,
        )
        cache = settings.binary_cache
        app = make_app(
            registry,
            access_log=settings.access_log,
            subapps={
                CACHE_PREFIX: make_cache_app(
                    service.cache, public_key=service.public_key, priority=cache.priority
                )
            }
            if cache.enabled
            else {},
            front_page=partial(reports.front_page, settings, service.public_key),
        )
        app[PACKAGE_SEARCH] = service.packages
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=limits.shutdown_timeout)
        await runner.setup()
        # Remembered answers are in no log, so they are given up where every request is to be in it.
        hot = HotAnswers(
            0 if settings.access_log else limits.memory_cache,
            omit=frozenset({REQUEST_ID.lower()}),
            at_once=narinfos_at_once(service.cache, CACHE_PREFIX)
            if cache.enabled and not settings.access_log
            else never,
        )
        servers = await serve_hot(runner, hot, sockets=[sock], backlog=_BACKLOG)
        log.info("serving", listen=_address(sock), pid=os.getpid(), public_key=service.public_key)
        started()
        await stop.wait()
        if supervisor is not None:
            loop.remove_reader(supervisor)
        log.info("stopping", timeout_seconds=limits.shutdown_timeout)
        registry.draining = True
        for server in servers:
            server.close()
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.cleanup())
            drained = group.create_task(service.pipeline.drain(limits.shutdown_timeout))
        log.info("stopped", images_given_up=drained.result())


def _bind(settings: Settings) -> socket.socket:
    host, _, port = settings.listen.rpartition(":")
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.workers > 1:
            # Every worker listens on a socket of its own and the kernel spreads connections over them.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError as error:
        raise SettingsError(
            "listen", f"cannot listen on {settings.listen}: {error.strerror or error}"
        ) from error
    return sock


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _supervise(settings: Settings, started: Callable[[], None]) -> int:
    """Run the workers as child processes; when one ends all are ended, so that a supervisor restarts us.

    A worker also ends when this process does, whatever ended it: it holds one end of a pipe whose other end
    closes with us.
    """
    children: set[int] = set()

    def forward(number: int, _frame: object) -> None:
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    alive, alive_here = os.pipe()
    ready, ready_there = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    for _ in range(settings.workers):
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(alive_here)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os._exit(_work(settings, alive, ready_there))
        children.add(pid)
    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(ready_there)
    # One byte a worker; the end comes early when they cannot start.
    if all(os.read(ready, 1) for _ in range(settings.workers)):
        started()
    worst = 0
    while children:
        pid, status = os.wait()
        children.discard(pid)
        if code := os.waitstatus_to_exitcode(status):
            worst = 1
            log.error("worker-died", pid=pid, code=code)
        forward(signal.SIGTERM, None)
    return worst


def _work(settings: Settings, alive: int, ready: int) -> int:
    """One worker process; returns its exit code."""

    def started() -> None:
        os.write(ready, b"1")
        os.close(ready)

    try:
        uvloop.run(_serve(settings, _bind(settings), started, supervisor=alive))
    except NixerySnapError as error:
        log.error("worker-cannot-start", reason=str(error))
        return 1
    except Exception:
        log.exception("worker-crashed")
        return 1
    return 0
