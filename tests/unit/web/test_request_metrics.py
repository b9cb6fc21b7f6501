"""Every answer is counted once, whichever way it was given."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web

from nixery_snap import metrics
from nixery_snap.web.file_response import FileRangeResponse
from nixery_snap.web.hot_answers import HOT, HotAnswers, always
from nixery_snap.web.request_metrics import FORMAT, SAVED_BYTES
from tests.unit.web.servers import LOOPS, serving

Counted = Counter[tuple[str, ...]]


def counted() -> Counted:
    found: Counted = Counter()
    for metric in (metrics.HTTP_REQUESTS, metrics.HTTP_BYTES, metrics.SAVED_BYTES):
        for sample in metric.collect()[0].samples:
            if not sample.name.endswith("_created"):
                found[sample.name.removeprefix("nixery_snap_"), *sample.labels.values()] += int(sample.value)
    return found


@contextmanager
def what_is_counted(answers: HotAnswers) -> Iterator[Counted]:
    """Filled at the end."""
    answers.settle()
    before, more = counted(), Counted()
    yield more
    answers.settle()
    more.update(counted() - before)


def make_app(file: Path) -> web.Application:
    async def get_hot(request: web.Request) -> web.Response:
        response = web.Response(text="x" * 10, status=int(request.query.get("status", 200)))
        response[HOT], response[FORMAT], response[SAVED_BYTES] = always, "nix-snapshotter", 1000
        return response

    async def get_file(_request: web.Request) -> web.StreamResponse:
        return FileRangeResponse(file, 0, 100, headers={})

    async def crash(_request: web.Request) -> web.Response:
        raise web.HTTPForbidden(text="no")

    inner = web.Application()
    inner.router.add_get("/file", get_file, name="file")
    app = web.Application()
    app.router.add_get("/hot", get_hot, name="hot")
    app.router.add_get("/{anything}/crash", crash, name="crash")
    app.add_subapp("/inner", inner)
    return app


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("max_bytes", [0, 1000, 2**20], ids=["nothing kept", "room for one", "all kept"])
def test_every_answer_is_counted_once(loop: str, max_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"y" * 100)
    answers = HotAnswers(max_bytes)
    with what_is_counted(answers) as more, serving(loop, make_app(tmp_path / "file"), answers) as server:
        with server.connect() as client:
            for _ in range(5):
                for method in ("GET", "HEAD"):
                    for _ in range(3):
                        client.get("/hot", method=method)
            client.get("/inner/file")
            client.get("/inner/file", method="HEAD")
            client.get("/inner/file?other=yes")
            client.get("/some-name/crash")
            client.get("/nothing/here")
            client.get("/hot?status=404")
        with server.connect() as client:
            client.send(b"GET / HTTP/x\r\n\r\n")
            client.receive()
        with server.connect() as client:
            client.send(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 6000)  # never a request: refused below aiohttp
            assert client.receive().status == 431
    hot = {key: value for key, value in more.items() if key[1:2] == ("hot",)}
    assert sum(value for key, value in hot.items() if key[3:4] == ("200",)) == 30
    by_memory = more["http_requests_total", "hot", "nix-snapshotter", "200", "memory"]
    assert by_memory == {0: 0, 1000: 20, 2**20: 28}[max_bytes]
    assert more["http_response_bytes_total", "hot", "nix-snapshotter"] == 15 * 10 + 10
    assert more["saved_bytes_total",] == 15 * 1000
    assert more["http_requests_total", "hot", "nix-snapshotter", "404", "handler"] == 1
    assert more["http_requests_total", "file", "", "200", "handler"] == 3
    assert more["http_response_bytes_total", "file", ""] == 200
    assert more["http_requests_total", "crash", "", "403", "handler"] == 1
    assert more["http_requests_total", "other", "", "404", "handler"] == 1
    assert more["http_requests_total", "other", "", "400", "handler"] == 1
    assert more["http_requests_total", "other", "", "431", "handler"] == 1


def test_names_of_a_client_make_no_series(tmp_path: Path) -> None:
    app, answers = make_app(tmp_path), HotAnswers()
    with (
        what_is_counted(answers) as more,
        serving("uvloop", app, answers) as server,
        server.connect() as client,
    ):
        for number in range(50):
            client.get(f"/name-{number}/crash", "X-Format: other")
            client.get(f"/{number}/not/there", method="PATCH")
    series = {key[1:] for key in more if key[0] == "http_requests_total"}
    assert series == {("crash", "", "403", "handler"), ("other", "", "404", "handler")}
