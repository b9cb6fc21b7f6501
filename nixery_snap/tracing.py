"""Traces by OpenTelemetry, from the extra `tracing`: nothing of it is loaded without an endpoint to send them to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final

from nixery_snap import __version__
from nixery_snap.errors import NixerySnapError, SettingsError

Facts = dict[str, Any]
"""What is known of a span at its end: text, numbers, truth values."""

TRACEPARENT: Final = "traceparent"  # W3C Trace Context
_OFF: Final[AbstractContextManager[None]] = nullcontext()


class _Tracing:
    """What is there of OpenTelemetry once it has been loaded."""

    def __init__(self, endpoint: str, name: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - an extra, which takes long to load
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self._api = trace
        self._propagator = TraceContextTextMapPropagator()
        resource = Resource.create({"service.name": name, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("nixery_snap", __version__)

    def stop(self) -> None:
        """Blocking: send what has not been sent."""
        self._provider.shutdown()

    @contextmanager
    def span(self, name: str, facts: Facts, caller: Mapping[str, str] | None) -> Iterator[None]:
        context = kind = None
        if caller is not None:
            context, kind = self._propagator.extract(caller), self._api.SpanKind.SERVER
        with self._tracer.start_as_current_span(
            name,
            context,
            kind or self._api.SpanKind.INTERNAL,
            record_exception=False,  # its trace can hold what an answer or a log must not
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                said = str(error) if isinstance(error, NixerySnapError) else type(error).__name__
                span.set_status(self._api.StatusCode.ERROR, said)
                raise
            finally:
                span.set_attributes(facts)

    def traceparent(self) -> str:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get(TRACEPARENT, "")


_tracing: _Tracing | None = None


@asynccontextmanager
async def traced(endpoint: str, name: str) -> AsyncIterator[None]:
    """Send spans to the OTLP receiver at the URL `endpoint`, if there is one, as the service `name`.

    To be entered in the process that makes the spans: threads do not survive a fork. Raises SettingsError.
    """
    global _tracing  # noqa: PLW0603 - whoever makes a span need not be handed this
    if not endpoint:
        yield
        return
    try:
        begun = _Tracing(endpoint, name)
    except ImportError as error:
        reason = f"install nixery-snap[tracing] ({error.name} is not there)"
        raise SettingsError("tracing.endpoint", reason) from None
    _tracing = begun
    try:
        yield
    finally:
        _tracing = None
        await asyncio.to_thread(begun.stop)


def span(name: str, facts: Facts) -> AbstractContextManager[None]:
    """A part of what goes on; `facts` may grow meanwhile. Its values come from the program or were checked."""
    return _OFF if _tracing is None else _tracing.span(name, facts, None)


def is_on() -> bool:
    return _tracing is not None


def request_span(name: str, facts: Facts, headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """The work for a request with these `headers`, as a part of the trace that they name, if any."""
    return _OFF if _tracing is None else _tracing.span(name, facts, headers)


def trace_id() -> str:
    return traceparent()[3:35]


def traceparent() -> str:
    """What a server that we ask is told of the current span; empty where there is none."""
    return "" if _tracing is None else _tracing.traceparent()
