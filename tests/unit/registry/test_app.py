import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from aiohttp import web

from nixery_snap.registry.app import make_app
from nixery_snap.registry.context import Registry, new_memory
from nixery_snap.web.hot_answers import HotAnswers
from tests.unit.web.servers import Client, serving


async def tell(request: web.Request) -> web.Response:
    return web.Response(text=request.path)


def registry() -> Registry:
    nothing = cast("Any", None)  # neither images nor blobs are asked for
    return Registry(nothing, nothing, nothing, 1, new_memory(2**20))


@pytest.fixture
def client() -> Iterator[Client]:
    subapp = web.Application()
    subapp.router.add_get("/{tail:.*}", tell)
    app = make_app(registry(), access_log=False, subapps={"/other": subapp}, front_page="grüezi {1}\n".format)
    with serving("uvloop", app, HotAnswers()) as server, server.connect() as connected:
        yield connected


def test_the_front_page(client: Client) -> None:
    response = client.get("/")
    assert (response.status, response.body.decode()) == (200, "grüezi test\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get("/", method="HEAD").headers["content-length"] == str(len(response.body))
    assert client.get("/", "Content-Length: 0", method="POST").status == 405


@pytest.mark.parametrize(
    ("head", "host"),
    [(b"GET / HTTP/1.0\r\n\r\n", "localhost"), (b"GET / HTTP/1.1\r\nHost: \xffx\r\n\r\n", "?x")],
    ids=["none", "odd"],
)
def test_hosts_that_are_none(client: Client, head: bytes, host: str) -> None:
    client.send(head)
    response = client.receive()
    if response.status == 200:
        assert response.body.decode() == f"grüezi {host}\n"
    else:
        assert (host, response.status) == ("?x", 400), "HTTP itself may refuse it"


def test_without_a_front_page() -> None:
    app = make_app(registry(), access_log=False)
    with serving("uvloop", app, HotAnswers()) as server, server.connect() as client:
        assert client.get("/").status == 404


def test_the_version_header_is_the_registrys_alone(client: Client) -> None:
    for path in ("/v2", "/v2/", "/v2/nothing"):
        assert client.get(path).headers["docker-distribution-api-version"] == "registry/2.0"
    for path in ("/", "/healthz", "/other/x", "/v2x"):
        assert "docker-distribution-api-version" not in client.get(path).headers


@pytest.mark.parametrize("path", ["/v2/%78/manifests/y", "/%762/%78/manifests/y", "/v2/x/blobs/sha256%2d"])
def test_escapes_below_v2(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status == 400
    assert json.loads(response.body)["errors"][0]["code"] == "NAME_INVALID"


def test_escapes_elsewhere(client: Client) -> None:
    assert client.get("/other/a%3Fb").body == b"/other/a?b"


def test_what_is_not_http(client: Client) -> None:
    client.send(b"GET / HTTP/9.x\r\n\r\n")
    response = client.receive()
    assert response.status == 400
    assert json.loads(response.body)["errors"][0]["code"] == "NAME_INVALID"


def test_without_a_catalogue(client: Client) -> None:
    response = client.get("/v2/_catalog")
    assert response.status == 404
    assert json.loads(response.body)["errors"][0]["code"] == "UNSUPPORTED"
