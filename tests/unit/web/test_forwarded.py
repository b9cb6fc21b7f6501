from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from aiohttp import web

from nixery_snap.web.forwarded import (
    TrustedProxies,
    address_of,
    asked_host,
    asked_scheme,
    client_address,
    plain_host,
)
from nixery_snap.web.hot_answers import HotAnswers
from tests.unit.web.servers import Client, serving


def app(*networks: str) -> web.Application:
    proxies = TrustedProxies([ip_network(text) for text in networks])

    async def tell(request: web.Request) -> web.Response:
        proxies.look(request)
        seen = address_of(request), client_address(request), asked_scheme(request), asked_host(request)
        return web.json_response([*seen, plain_host(request)])

    made = web.Application()
    made.router.add_get("/", tell)
    return made


@pytest.fixture(scope="module")
def behind() -> Iterator[Client]:
    with (
        serving("asyncio", app("127.0.0.0/8", "10.0.0.0/8", "2001:db8:1::/48"), HotAnswers()) as server,
        server.connect() as client,
    ):
        yield client


def seen(client: Client, *headers: str) -> list[str]:
    found: list[str] = json.loads(client.get("/", *headers).body)
    return found


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ([], "127.0.0.1"),
        (["X-Forwarded-For: 192.0.2.7"], "192.0.2.7"),
        (["X-Forwarded-For: 192.0.2.7, 10.1.1.1"], "192.0.2.7"),
        (["X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 10.1.1.1"], "192.0.2.7"),
        (["X-Forwarded-For: 198.51.100.1, 192.0.2.7, 10.1.1.1"], "192.0.2.7"),
        (["X-Forwarded-For: 10.9.9.9,10.1.1.1"], "10.9.9.9"),
        (["X-Forwarded-For: 192.0.2.7:4711"], "192.0.2.7"),
        (["X-Forwarded-For: [2001:db8:2::5]:4711"], "2001:db8:2::5"),
        (["X-Forwarded-For: ::ffff:192.0.2.7"], "192.0.2.7"),
        (["X-Forwarded-For: unknown"], "127.0.0.1"),
        (["X-Forwarded-For: 192.0.2.7, nonsense, 10.1.1.1"], "10.1.1.1"),
        (["X-Forwarded-For: 192.0.2.7,"], "127.0.0.1"),
        (["Forwarded: for=192.0.2.7", "X-Real-IP: 192.0.2.7"], "127.0.0.1"),
        ([f"X-Forwarded-For: 192.0.2.7, {', '.join(['10.1.1.1'] * 100)}"], "10.1.1.1"),
    ],
)
def test_addresses(behind: Client, headers: list[str], address: str) -> None:
    assert seen(behind, *headers)[0] == address


def test_ipv6_clients_are_counted_by_their_network(behind: Client) -> None:
    one = seen(behind, "X-Forwarded-For: 2001:db8:2:3:4::5")
    assert one[:2] == ["2001:db8:2:3:4::5", "2001:db8:2:3::/64"]


@pytest.mark.parametrize(
    ("headers", "scheme", "host"),
    [
        ([], "http", "test"),
        (["X-Forwarded-Proto: https", "X-Forwarded-Host: registry.example:8443"], "https", "registry.example:8443"),
        (["X-Forwarded-Proto: ftp", "X-Forwarded-Host: a/b"], "http", "test"),
        (["X-Forwarded-Proto: http, HTTPS", "X-Forwarded-Host: evil.example, good.example"], "https", "good.example"),
        (["X-Forwarded-Host: [2001:db8::1]:80"], "http", "[2001:db8::1]:80"),
        (['X-Forwarded-Host: x",service="y'], "http", "test"),
    ],
)  # fmt: skip
def test_scheme_and_host(behind: Client, headers: list[str], scheme: str, host: str) -> None:
    assert seen(behind, *headers)[2:] == [scheme, host, host]


@pytest.mark.parametrize("networks", [[], ["10.0.0.0/8"]], ids=["none", "another"])
def test_nobody_else_is_believed(networks: list[str]) -> None:
    lies = ["X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https", "X-Forwarded-Host: registry.example"]
    with serving("asyncio", app(*networks), HotAnswers()) as server, server.connect() as client:
        assert seen(client, *lies) == ["127.0.0.1", "127.0.0.1", "http", "test", "test"]


def test_a_host_that_does_not_fit_into_a_url(behind: Client) -> None:
    behind.send(b'GET / HTTP/1.1\r\nHost: x",a="b\r\n\r\n')
    response = behind.receive()
    assert response.status == 400 or json.loads(response.body)[4] == ""
