"""One trace, from the request of a client to the last narinfo, as an OTLP receiver gets it."""

from __future__ import annotations

import gzip
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nixery_snap.image_service.generated import cri_pb2 as cri
from tests.integration.caches import Served
from tests.integration.images import annotated_paths
from tests.integration.kubelet import IMAGES, new_node
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.processes import wait_until
from tests.integration.server import Registry, Start, Substituter, program_env
from tests.support.servers import Handler, Server

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


@dataclass(frozen=True)
class Span:
    name: str
    service: str
    trace: str
    id: str
    parent: str
    facts: dict[str, Any]
    is_error: bool
    message: str
    nanoseconds: tuple[int, int]


@dataclass
class Collector:
    """What has come, and by which requests."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def take(self, content: bytes) -> None:
        request = trace_service.ExportTraceServiceRequest.FromString(content)
        for resource in request.resource_spans:
            of_resource = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_span(span, of_resource["service.name"]) for span in scope.spans]


def _span(span: Any, service: str) -> Span:
    facts = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
    return Span(
        *(span.name, service, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), facts),
        *(span.status.code == 2, span.status.message),
        (span.start_time_unix_nano, span.end_time_unix_nano),
    )


@contextmanager
def http_server(handle: Any) -> Iterator[int]:
    """The port of a server whose answers `handle` gives."""

    class Asked(Handler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            handle(self.path, dict(self.headers.items()), content)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            status, body = handle(self.path, dict(self.headers.items()), b"")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with Server(Asked).running() as server:
        yield server.server_port


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()

    def handle(path: str, headers: dict[str, str], content: bytes) -> None:
        assert path == "/v1/traces"
        found.headers.append(headers)
        found.take(gzip.decompress(content) if headers.get("Content-Encoding") == "gzip" else content)

    with http_server(handle) as found.port:
        yield found


@pytest.fixture
def traced(cold: Registry, collector: Collector) -> Registry:
    """To be started; spans leave it soon."""
    cold.env = sending_to(collector)
    return cold


def sending_to(collector: Collector) -> dict[str, str]:
    """Often; and what the collector takes late is no fault in the log."""
    return {
        "NIXERY_SNAP_TRACING__ENDPOINT": collector.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "100",
    }


def new_trace() -> tuple[str, str]:
    """Its id, and a header of a client that has begun it."""
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{secrets.token_hex(8)}-01"


def test_from_the_request_to_the_last_narinfo(
    traced: Registry, collector: Collector, served: Served, start: Start
) -> None:
    name = "nix-snapshotter/other/hello"
    asked: list[tuple[str, str]] = []

    def forward(path: str, headers: dict[str, str], _: bytes) -> tuple[int, bytes]:
        asked.append((path, headers.get("traceparent", "")))
        try:
            with urllib.request.urlopen(served.url + path) as answer:  # noqa: S310 - http, of the test
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""

    with http_server(forward) as port:
        traced.substituters = [Substituter(f"http://127.0.0.1:{port}", [served.cache.key.public])]
        # The default source is pinned before a server is ready.
        traced.config = f'[sources.other]\nspec = "path:{EXAMPLES}"\nprefix = "other"\n'
        start(traced)
        trace, traceparent = new_trace()
        answer = traced.get(f"/v2/{name}/manifests/latest", traceparent=traceparent)
        assert answer.status == 200

        def spans() -> list[Span]:
            return [span for span in collector.spans if span.trace == trace]

        wait_until(
            lambda: "request" in {span.name for span in spans()}, seconds=60, what="the request's span"
        )
        by_name = {span.name: span for span in spans()}
        assert set(by_name) == {"request", "pin", "evaluate", "locate", "narinfos", "assemble"}
        assert {span.service for span in spans()} == {"nixery-snap"}
        assert not any(span.is_error for span in spans())

        root = by_name["request"]
        assert root.parent == traceparent.split("-")[2]
        assert root.facts["http.request.method"] == "GET"
        assert root.facts["url.path"] == f"/v2/{name}/manifests/latest"
        assert root.facts["http.response.status_code"] == 200
        assert root.facts["request_id"] == answer.headers["x-request-id"]
        for step in ("pin", "evaluate", "locate", "assemble"):
            assert by_name[step].parent == root.id
        ids = {span.id: span for span in spans()}
        for span in spans():
            assert span is root or span.parent in ids
            assert span.nanoseconds[0] <= span.nanoseconds[1]
            assert root.nanoseconds[0] <= span.nanoseconds[0]

        paths = annotated_paths(answer.json()["layers"][0])
        assert by_name["locate"].facts["paths"] == len(paths)
        narinfos = [(path, parent) for path, parent in asked if path.endswith(".narinfo")]
        assert len(narinfos) >= len(paths)
        of_batches = {span.id for span in spans() if span.name == "narinfos"}
        for path, parent in narinfos:  # to the last of them
            version, its_trace, span_id, _ = parent.split("-")
            assert (version, its_trace) == ("00", trace), path
            assert span_id in of_batches
        assert {line.get("trace_id") for line in traced.events("evaluated")} == {trace}


def test_what_fails_and_what_is_built(traced: Registry, collector: Collector, start: Start) -> None:
    start(traced)
    bad, traceparent = new_trace()
    failed = traced.get("/v2/failstobuild/manifests/latest", traceparent=traceparent)
    assert failed.status == 404
    good, traceparent = new_trace()
    assert traced.get("/v2/classic/hello/manifests/latest", traceparent=traceparent).status == 200
    # Repeated, with a trace of its own: never out of memory, whatever the answer before.
    again = new_trace()
    assert traced.get("/v2/classic/hello/manifests/latest", traceparent=again[1]).status == 200
    wait_until(
        lambda: again[0] in {span.trace for span in collector.spans}, seconds=60, what="the last trace"
    )
    by_name = {span.name: span for span in collector.spans if span.trace == bad}
    assert by_name["realise"].is_error
    assert by_name["realise"].message in failed.error["message"]
    assert by_name["request"].facts["http.response.status_code"] == 404
    by_name = {span.name: span for span in collector.spans if span.trace == good}
    assert {"request", "realise", "assemble", "pack", "publish"} <= by_name.keys()
    assert by_name["pack"].parent == by_name["assemble"].id
    assert by_name["realise"].facts["packages"] > 0
    assert [span.name for span in collector.spans if span.trace == again[0]] == ["request"]


def test_from_the_kubelet_through_the_registry(
    directory: Path, collector: Collector, prepared_store: ChrootStore, start: Start
) -> None:
    tracing = sending_to(collector)
    registry = start(Registry(directory / "state", prepared_store.root, env=tracing))
    substituters = [Substituter(registry.cache_url, [registry.public_key])]
    with new_node(directory / "node", "2", substituters) as node, node.kubelet() as kubelet:
        node.registries = [registry.host]
        node.start("snapshotter", "containerd")
        node.start_service(**tracing)
        trace, traceparent = new_trace()
        image = cri.ImageSpec(image=f"{registry.host}/nix-snapshotter/hello:latest")
        metadata = (("traceparent", traceparent), ("binary-bin", b"\xff"))
        kubelet.call(
            IMAGES + "PullImage", cri.PullImageRequest(image=image), cri.PullImageResponse, metadata=metadata
        )
        node.stop()
    registry.stop()  # sends what is left
    spans = [span for span in collector.spans if span.trace == trace]
    [pull] = [span for span in spans if span.name == "PullImage"]
    assert (pull.service, pull.parent) == ("nixery-snap-image-service", traceparent.split("-")[2])
    requests = [span for span in spans if span.name == "request"]
    assert {span.parent for span in requests} == {pull.id}
    assert {span.service for span in requests} == {"nixery-snap"}
    assert "/v2/nix-snapshotter/hello/manifests/latest" in {span.facts["url.path"] for span in requests}
    assert "locate" in {span.name for span in spans}


def test_nonsense_for_a_trace_begins_a_new_one(traced: Registry, collector: Collector, start: Start) -> None:
    start(traced)
    for nonsense in ("x", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff-" + "g" * 32, "0" * 4000):
        assert traced.get("/healthz", traceparent=nonsense).status == 200
    unsampled = f"00-{'a' * 32}-{'b' * 16}-00"
    assert traced.get("/healthz", traceparent=unsampled).status == 200
    traced.stop()  # sends what is left
    spans = [span for span in collector.spans if span.facts.get("url.path") == "/healthz"]
    assert len({span.trace for span in spans}) == len(spans) == 4
    assert {span.parent for span in spans} == {""}


def test_a_collector_that_is_away_disturbs_nobody(traced: Registry) -> None:
    traced.env["NIXERY_SNAP_TRACING__ENDPOINT"] = "http://user:s3cret@127.0.0.1:1/v1/traces"
    traced.env["OTEL_EXPORTER_OTLP_TIMEOUT"] = "1"
    traced.start()
    try:
        assert traced.manifest("hello").status == 200
    finally:
        assert traced.stop() == 0
    assert "s3cret" not in traced.log.read_text()


OFF = """
import asyncio, sys
from nixery_snap import tracing
if sys.argv[1] == "absent":
    sys.modules["opentelemetry"] = None
import nixery_snap.cli, nixery_snap.serving
with tracing.span("a", {}), tracing.request_span("b", {}, {"traceparent": "00-" + "a" * 32}):
    assert tracing.traceparent() == ""
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
if sys.argv[1] == "absent":
    asyncio.run(tracing.traced("http://127.0.0.1:1", "x").__aenter__())
"""


@pytest.mark.parametrize("extra", ["there", "absent"])
def test_nothing_of_it_is_loaded_when_it_is_off(extra: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OFF, extra]
    done = subprocess.run(command, env=program_env(tmp_path), capture_output=True, text=True, check=False)
    if extra == "there":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        message = "tracing.endpoint: install nixery-snap[tracing] (opentelemetry is not there)"
        assert done.stderr.splitlines()[-1].endswith(message)
