"""What the program counts of itself, in Prometheus' form (docs/monitoring.md describes every one).

Metrics stand here together, whoever counts: names, labels and units are one vocabulary. Values of labels are words of
this program or of its settings, never of a request: each new value is a time series for ever.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nixery_snap import __version__

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

# From an answer out of memory to a build of an hour.
_SECONDS: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


BUILD: Final = _gauge("nixery_snap_build_info", "The version of this program.", "version")
BUILD.labels(__version__).set(1)

# --- HTTP ------------------------------------------------------------------------------------------

HTTP_REQUESTS: Final = _counter(
    "nixery_snap_http_requests_total",
    "Requests that were answered.",
    *("route", "format", "code", "answered_by"),
)
HTTP_BYTES: Final = _counter(
    "nixery_snap_http_response_bytes_total", "Bytes of the bodies of answers.", "route", "format"
)
HTTP_IN_FLIGHT: Final = _gauge("nixery_snap_http_requests_in_flight", "Requests that are being answered.")
SAVED_BYTES: Final = _counter(
    "nixery_snap_saved_bytes_total",
    "NAR sizes of the closures of snapshotter images whose manifest was served: what the classic form would hold.",
)
MANIFEST_SECONDS: Final = _histogram(
    "nixery_snap_manifest_seconds", "Time until an image that was asked for by name was there.", "outcome"
)

# --- Making images ---------------------------------------------------------------------------------

STEP_SECONDS: Final = _histogram("nixery_snap_step_seconds", "Time of a step that succeeded.", "step")
STEP_FAILURES: Final = _counter("nixery_snap_step_failures_total", "Steps that failed.", "step")
STEPS_IN_PROGRESS: Final = _gauge("nixery_snap_steps_in_progress", "Steps that go on.", "step")
for _step in ("pin", "evaluate", "locate", "realise", "assemble", "pack", "publish"):
    for _metric in (STEP_SECONDS, STEP_FAILURES, STEPS_IN_PROGRESS):
        _metric.labels(_step)  # from the start: an increase can only be seen of what was there before
PACKED_BYTES: Final = _counter(
    "nixery_snap_packed_bytes_total", "NAR sizes of the store paths that were compressed for classic layers."
)
BUILDS_WAITING: Final = _gauge("nixery_snap_builds_waiting", "Images whose packages wait for being built.")

# --- Binary caches and storage ---------------------------------------------------------------------

SUBSTITUTER_SECONDS: Final = _histogram(
    "nixery_snap_substituter_request_seconds", "Time until a substituter had answered.", "substituter"
)
SUBSTITUTER_UP: Final = _gauge(
    "nixery_snap_substituter_up",
    "0 while a substituter is left alone because it keeps failing.",
    "substituter",
)
SUBSTITUTER_BYTES: Final = _counter(
    "nixery_snap_substituter_received_bytes_total", "Bytes that came from a substituter.", "substituter"
)
SUBSTITUTER_FAILURES: Final = _counter(
    "nixery_snap_substituter_failures_total", "Requests to a substituter that failed.", "substituter"
)
PUBLISHED_PATHS: Final = _counter(
    "nixery_snap_published_paths_total", "Store paths that were written to our own binary cache for an image."
)
PUBLISHED_BYTES: Final = _counter("nixery_snap_published_bytes_total", "Sizes of their compressed NARs.")
STORAGE_ERRORS: Final = _counter(
    "nixery_snap_storage_errors_total", "Operations of the object store that failed."
)
COLLECTED_OBJECTS: Final = _counter(
    "nixery_snap_collected_objects_total", "Objects that garbage collection removed in the background."
)
COLLECTED_BYTES: Final = _counter("nixery_snap_collected_bytes_total", "Sizes of these objects.")
COLLECTION_FAILURES: Final = _counter(
    "nixery_snap_collection_failures_total", "Garbage collections in the background that failed."
)
CACHE_BYTES: Final = _gauge("nixery_snap_cache_bytes", "What a cache in memory holds.", "cache")

# --- Image service ---------------------------------------------------------------------------------

PULL_SECONDS: Final = _histogram(
    "nixery_snap_pull_seconds",
    "Time of pulls that were asked of the image service; route: archive, name, registry.",
    *("route", "result"),
)
PULLS_IN_FLIGHT: Final = _gauge("nixery_snap_pulls_in_flight", "Pulls that go on.", "route")
PREFETCH_SECONDS: Final = _histogram(
    "nixery_snap_prefetch_seconds", "Time of fetching what an image lacked.", "result"
)
PREFETCH_FAILURES: Final = _counter(
    "nixery_snap_prefetch_failures_total",
    "Images of registries for which nothing was fetched; their pulls went on all the same.",
)
PREFETCHES_IN_FLIGHT: Final = _gauge(
    "nixery_snap_prefetches_in_flight", "Images whose store paths are being fetched."
)
PREFETCHED_PATHS: Final = _counter("nixery_snap_prefetched_paths_total", "Store paths fetched for images.")
PREFETCHED_BYTES: Final = _counter(
    "nixery_snap_prefetched_bytes_total", "NAR sizes of the store paths fetched for images."
)
BUILDER_REQUESTS: Final = _counter(
    "nixery_snap_builder_requests_total",
    "Store paths that the snapshotter asked for; answered_by: link (was there), nix.",
    "answered_by",
)


_sizes: Final[defaultdict[str, list[Callable[[], float]]]] = defaultdict(list)


def watch_size(cache: str, size_bytes: Callable[[], float]) -> None:
    """Have `size_bytes` asked for what one of the caches of that name holds."""
    sizes = _sizes[cache]
    sizes.append(size_bytes)
    CACHE_BYTES.labels(cache).set_function(lambda: sum(size() for size in sizes))


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Count a step: how long it takes, whether it fails, that it goes on."""
    going_on, begun = STEPS_IN_PROGRESS.labels(step), time.perf_counter()
    going_on.inc()
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception):  # being given up is no failure
            STEP_FAILURES.labels(step).inc()
        raise
    else:
        STEP_SECONDS.labels(step).observe(time.perf_counter() - begun)
    finally:
        going_on.dec()


# --- Of several processes --------------------------------------------------------------------------

Snapshot = list[tuple[str, str, str, list[tuple[str, Mapping[str, str], float]]]]
"""For each metric its name, help and type, and its samples, as JSON has them."""

_NO_SUM: Final = {
    "nixery_snap_build_info": max,
    "nixery_snap_substituter_up": min,
    "process_start_time_seconds": min,
}


def snapshot() -> Snapshot:
    """Of this process."""
    return [
        (
            metric.name,
            metric.documentation,
            metric.type,
            [
                (sample.name, sample.labels, sample.value)
                for sample in metric.samples
                if not sample.name.endswith("_created")  # as many series again, of which nobody asks anything
            ],
        )
        for metric in REGISTRY.collect()
    ]


def exposition(snapshots: Iterable[Snapshot]) -> bytes:
    """Prometheus' text format 0.0.4 of several processes as if they were one."""
    together: dict[str, tuple[Metric, dict[Any, float]]] = {}
    for one in snapshots:
        for name, text, kind, samples in one:
            _, values = together.setdefault(name, (Metric(name, text, kind), {}))
            for sample, labels, value in samples:
                key = sample, *labels.items()
                merge = _NO_SUM.get(sample)
                known = values.get(key)
                if known is None:
                    values[key] = value
                else:
                    values[key] = merge(known, value) if merge else known + value
    for metric, values in together.values():
        for (sample, *labels), value in values.items():
            metric.add_sample(sample, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Collected([metric for metric, _ in together.values()]))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics
