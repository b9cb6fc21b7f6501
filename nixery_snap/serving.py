"""Runs the registry: sockets, worker processes, signals, graceful shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from nixery_snap import event_loop, metrics
from nixery_snap.binary_cache.at_once import narinfos_at_once
from nixery_snap.errors import NixerySnapError
from nixery_snap.image_service.notify import notify
from nixery_snap.listening import address_of, bind, handed_over, start_again
from nixery_snap.metrics_listener import MetricsPart, metrics_parts, metrics_served
from nixery_snap.registry.context import REGISTRY
from nixery_snap.retention import stay_tidy
from nixery_snap.service import open_service
from nixery_snap.settings import CACHE_PREFIX, Settings
from nixery_snap.site import make_site
from nixery_snap.tls import Certificate
from nixery_snap.tracing import traced
from nixery_snap.web.hot_answers import HotAnswers, never, serve_hot
from nixery_snap.web.request_log import REQUEST_ID

if TYPE_CHECKING:
    from nixery_snap.entrance import Entrance

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
        code, again = 0, event_loop.run(_serve(settings, sock, parts[0], ready))
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
    address = address_of(sock)
    certificate = _certificate(settings)
    async with (
        open_service(settings) as service,
        _entrance(settings, address) as entrance,
        AsyncExitStack() as stack,
    ):
        app = make_site(settings, service, entrance)
        # Whoever waits for work that is given up then is still told so.
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=limits.shutdown_timeout + _LAST_WORDS_SECONDS
        )
        await runner.setup()
        # Remembered answers are in no log, nobody is asked who he is before one, and they note uses in one store
        # alone: so they are given up where every request is to be in the log, or something is not for everybody.
        # Nor may the same bytes mean another source when a proxy sends them: whoever is first would choose for both.
        hosts_by_proxies = settings.trusted_proxies and settings.source_names.hosts
        remembers = not (settings.access_log or entrance or service.separate or hosts_by_proxies)
        hot = HotAnswers(
            limits.memory_cache if remembers else 0,
            omit=frozenset({REQUEST_ID.lower()}),
            at_once=narinfos_at_once(service.shared.cache, CACHE_PREFIX)
            if settings.binary_cache.enabled and remembers
            else never,
            trusted=service.shared.uses.trusted,
            notes_uses=settings.retention.unused > 0,
        )
        metrics.watch_size("answers", lambda: hot.size_bytes)
        await stack.enter_async_context(metrics_served(part, hot.settle))
        await stack.enter_async_context(traced(settings.tracing.endpoint, "nixery-snap"))
        service.shared.uses.remembers(hot.forget, take_uses=hot.take_uses)
        service.shared.lost_layers.forget.append(hot.forget)
        compartments = (service.shared, *service.separate.values())
        background = [asyncio.ensure_future(stay_tidy(settings, one.objects)) for one in compartments]
        if certificate is not None:
            background.append(asyncio.ensure_future(certificate.renew()))
        servers = await serve_hot(
            runner, hot, sockets=[sock], backlog=_BACKLOG, ssl=certificate.context if certificate else None
        )
        log.info("serving", listen=address, pid=os.getpid(), public_key=service.public_key)
        started()
        await stop.wait()
        if supervisor is not None:
            loop.remove_reader(supervisor)
        for task in background:
            task.cancel()
        log.info("stopping", timeout_seconds=limits.shutdown_timeout)
        app[REGISTRY].draining = True
        for server in servers:
            server.close()
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.cleanup())
            drained = [
                group.create_task(compartment.pipeline.drain(limits.shutdown_timeout))
                for compartment in compartments
            ]
        log.info("stopped", images_given_up=sum(one.result() for one in drained))
    return again


def _entrance(settings: Settings, listen: str) -> AbstractAsyncContextManager[Entrance | None]:
    """None where everybody may have everything. Raises SettingsError when it is entered."""
    if not ip_address(listen.rpartition(":")[0].strip("[]")).is_loopback:
        if not settings.auth.knows_users:
            log.warning(
                "no-authentication",
                listen=listen,
                reason="anybody can ask for images: see auth in the settings",
            )
        elif not (settings.tls.certificate_file or settings.trusted_proxies):
            log.warning("no-tls", listen=listen, reason="passwords can be read on their way: see tls")
    if not settings.auth.is_on:
        return nullcontext()
    from nixery_snap.entrance import open_entrance  # cryptography takes long to load  # noqa: PLC0415

    return open_entrance(settings, listen)


def _certificate(settings: Settings) -> Certificate | None:
    tls = settings.tls
    if not tls.certificate_file:
        return None
    return Certificate(Path(tls.certificate_file).absolute(), Path(tls.key_file).absolute())


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
        event_loop.run(_serve(settings, held or _bind(settings), part, started, supervisor=alive))
    except NixerySnapError as error:
        log.error("worker-cannot-start", reason=str(error))
        return 1
    except Exception:
        log.exception("worker-crashed")
        return 1
    return 0
