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
from nixery_snap.errors import NixerySnapError
from nixery_snap.image_service.notify import notify
from nixery_snap.listening import address_of, bind, handed_over, start_again
from nixery_snap.metrics_listener import MetricsPart, metrics_parts, metrics_served
from nixery_snap.registry.app import make_app
from nixery_snap.registry.context import Registry, new_memory
from nixery_snap.registry.packages import PACKAGE_SEARCH
from nixery_snap.retention import stay_tidy
from nixery_snap.service import open_service
from nixery_snap.settings import CACHE_PREFIX, Settings
from nixery_snap.web.hot_answers import HotAnswers, never, serve_hot
from nixery_snap.web.request_log import REQUEST_ID

log = structlog.get_logger()

_BACKLOG = 1024
_LAST_WORDS_SECONDS = 5
# Elsewhere SIGHUP tells that the terminal is gone.
_RELOADS = "NOTIFY_SOCKET" in os.environ


def serve(settings: Settings, started: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; calls `started` with the address once requests are taken.

    Returns the exit code. Raises SettingsError, NixError.
    """
    held = handed_over()
    sock = held or _bind(settings)
    parts = metrics_parts(settings.metrics.listen, settings.workers)
    address = address_of(sock)
    kept = held and held.dup()  # servers close what they listen on

    def ready() -> None:
        notify("READY=1")
        started(address)

    if settings.workers == 1:
        code, again = 0, uvloop.run(_serve(settings, sock, parts[0], ready))
    else:
        code, again = _supervise(settings.model_copy(update={"listen": address}), held, parts, ready)
    if again:
        start_again(kept)
    return code


def _bind(settings: Settings) -> socket.socket:
    # Each worker listens on a socket of its own and the kernel spreads connections over them.
    return bind(settings.listen, "listen", shared=settings.workers > 1)


async def _serve(
    settings: Settings,
    sock: socket.socket,
    part: MetricsPart,
    started: Callable[[], None],
    supervisor: int | None = None,
) -> bool:
    """Whether to start again. `supervisor`: a descriptor, readable when the process that watches over us is gone."""
    stop = asyncio.Event()
    again = False

    def end(*, to_start_again: bool) -> None:
        nonlocal again
        again = to_start_again
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(end, to_start_again=False))
    if supervisor is None:
        # Somebody at a terminal who asks twice does not want to wait for builds.
        loop.add_signal_handler(signal.SIGINT, lambda: os._exit(130) if stop.is_set() else stop.set())
        if _RELOADS:
            loop.add_signal_handler(signal.SIGHUP, partial(end, to_start_again=True))
    else:
        loop.add_reader(supervisor, stop.set)
    limits = settings.limits
    async with open_service(settings) as service, metrics_served(part):
        registry = Registry(
            service.pipeline,
            service.blobs,
            service.grammar,
            settings.nix.wait_timeout,
            new_memory(limits.memory_cache),
            settings.index_formats,
            uses=service.uses,
            lost_layers=service.lost_layers,
        )
        cache = settings.binary_cache
        app = make_app(
            registry,
            access_log=settings.access_log,
            subapps={
                CACHE_PREFIX: make_cache_app(
                    service.cache,
                    public_key=service.public_key,
                    priority=cache.priority,
                    uses=service.uses,
                )
            }
            if cache.enabled
            else {},
            front_page=partial(reports.front_page, settings, service.public_key),
        )
        app[PACKAGE_SEARCH] = service.packages
        # Whoever waits for work that is given up then is still told so.
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=limits.shutdown_timeout + _LAST_WORDS_SECONDS
        )
        await runner.setup()
        # Remembered answers are in no log, so they are given up where every request is to be in it.
        hot = HotAnswers(
            0 if settings.access_log else limits.memory_cache,
            omit=frozenset({REQUEST_ID.lower()}),
            at_once=narinfos_at_once(service.cache, CACHE_PREFIX)
            if cache.enabled and not settings.access_log
            else never,
            trusted=service.uses.trusted,
        )
        service.uses.remembers(registry.forget, hot.forget, take_uses=hot.take_uses)
        tidying = asyncio.ensure_future(stay_tidy(settings, service.objects))
        servers = await serve_hot(runner, hot, sockets=[sock], backlog=_BACKLOG)
        log.info("serving", listen=address_of(sock), pid=os.getpid(), public_key=service.public_key)
        started()
        await stop.wait()
        if supervisor is not None:
            loop.remove_reader(supervisor)
        tidying.cancel()
        log.info("stopping", timeout_seconds=limits.shutdown_timeout)
        registry.draining = True
        for server in servers:
            server.close()
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.cleanup())
            drained = group.create_task(service.pipeline.drain(limits.shutdown_timeout))
        log.info("stopped", images_given_up=drained.result())
    return again


def _supervise(
    settings: Settings, held: socket.socket | None, parts: list[MetricsPart], started: Callable[[], None]
) -> tuple[int, bool]:
    """Run the workers as child processes; when one ends all are ended, so that a supervisor restarts us.

    Returns the exit code, and whether to start again. The workers share the socket that systemd holds.

    A worker also ends when this process does, whatever ended it: it holds one end of a pipe whose other end
    closes with us.
    """
    children: set[int] = set()
    again = False

    def end(number: int) -> None:
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def forward(number: int, _frame: object) -> None:
        nonlocal again
        again = number == signal.SIGHUP
        end(signal.SIGTERM if again else number)

    alive, alive_here = os.pipe()
    ready, ready_there = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    for part in parts:
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(alive_here)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os._exit(_work(settings, held, part, alive, ready_there))
        children.add(pid)
    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    if _RELOADS:
        signal.signal(signal.SIGHUP, forward)
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
        end(signal.SIGTERM)
    return worst, again


def _work(settings: Settings, held: socket.socket | None, part: MetricsPart, alive: int, ready: int) -> int:
    """One worker process; returns its exit code."""

    def started() -> None:
        os.write(ready, b"1")
        os.close(ready)

    try:
        uvloop.run(_serve(settings, held or _bind(settings), part, started, supervisor=alive))
    except NixerySnapError as error:
        log.error("worker-cannot-start", reason=str(error))
        return 1
    except Exception:
        log.exception("worker-crashed")
        return 1
    return 0
