"""Nonsense gets a clean refusal, and the server goes on answering."""

import contextlib
import http.client
import socket
import string

import aiohttp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.integration.server import Registry, Response, digest_of

NAME = "shell/hello"
EXAMPLES = 60
FRAGMENTS = [
    *["..", ".", "", "%2e%2e", "%2f", "%2F..%2f", "%00", "%0a", "%ff", "%", "%zz", "~", "nix", "store"],
    *[
        "shell",
        "hello",
        "HELLO",
        "hello ",
        "a" * 256,
        "ü",
        "%C3%BC",
        '"',
        "'",
        "${builtins.abort}",
        "a;b",
        "a\\b",
    ],
    *["-", "_", "a__b", "a___b", "a..b", "meta", "lib.fix", "hello.outPath", "hello.drvPath", "__proto__"],
    *["builtins", "manifests", "blobs", "uploads"],
]
NAMES = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=5).map("/".join)
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60)
REFERENCES = st.one_of(
    st.sampled_from(FRAGMENTS),
    VISIBLE,
    st.text(string.hexdigits, max_size=140).map("sha256:{}".format),
    st.sampled_from(
        ["sha512:" + "0" * 128, "md5:" + "0" * 32, "sha256:" + "g" * 64, "sha256:../../etc/passwd"]
    ),
)
BYTES = st.binary(min_size=1, max_size=80).filter(lambda value: not set(value) & set(b"\r\n \t"))


def raw(port: int, sent: bytes, *, seconds: float = 120) -> Response:
    """Send these bytes and read the answer; the connection is asked to end."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection, method=sent.split(b" ", 1)[0].decode("latin-1"))
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, headers, answer.read())


def ask(registry: Registry, target: bytes, *, method: bytes = b"GET", headers: bytes = b"") -> Response:
    head = b"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n" % (method, target, headers)
    return raw(registry.port, head)


def assert_clean(answer: Response) -> None:
    """The client's fault, in the words of the protocol; or right by chance, and then all of it."""
    assert answer.status < 500, answer
    if answer.status >= 400:
        assert answer.error["code"]
        assert "Traceback" not in answer.body.decode()
    elif "docker-content-digest" in answer.headers and answer.status == 200:
        assert answer.headers["docker-content-digest"] == digest_of(answer.body)


def assert_alive(registry: Registry) -> None:
    assert registry.get("/healthz").status == 200
    assert registry.manifest(NAME).status == 200


@settings(max_examples=EXAMPLES)
@given(NAMES, REFERENCES, st.sampled_from(["manifests", "blobs", "tags", "referrers", "nonsense"]))
@example("..", "latest", "manifests")
@example("../../../../etc", "passwd", "blobs")
@example("%2e%2e/%2e%2e", "passwd", "manifests")
@example("a" * 10_000, "latest", "manifests")
@example("a/" * 5_000 + "a", "latest", "manifests")
@example("hello", "t" * 129, "manifests")
@example("hello", "sha256:" + "0" * 10_000, "blobs")
@example("hello", "%00", "manifests")
def test_names_and_references(registry: Registry, name: str, reference: str, kind: str) -> None:
    assert_clean(ask(registry, f"/v2/{name}/{kind}/{reference}".encode("utf-8", "surrogatepass")))


@settings(max_examples=EXAMPLES)
@given(BYTES)
@example(b"/../../etc/passwd")
@example(b"http://other.example/v2/")
@example(b"*")
@example(b"//v2//")
@example(b"/v2/%2e%2e/%2e%2e/healthz")
def test_any_bytes_as_a_target(registry: Registry, target: bytes) -> None:
    answer = ask(registry, target)
    assert answer.status < 500, answer


@settings(max_examples=EXAMPLES)
@given(BYTES)
def test_any_bytes_below_v2(registry: Registry, rest: bytes) -> None:
    """What HTTP itself forbids may be refused in HTTP's words; all else in the registry's."""
    answer = ask(registry, b"/v2/" + rest)
    assert answer.status < 500, answer
    if answer.status != 400 or answer.headers["content-type"].startswith("application/json"):
        assert_clean(answer)


@settings(max_examples=EXAMPLES)
@given(
    st.one_of(
        VISIBLE,
        st.lists(st.integers(-5, 10**20)).map(lambda n: "bytes=" + ",".join(map("{0}-{0}".format, n))),
    )
)
@example("bytes=" + ",".join(f"{n}-{n}" for n in range(1000)))
@example("bytes=0-0,0-0,0-0,0-0")
@example("bytes=18446744073709551616-18446744073709551617")
@example("bytes=" + "9" * 5000 + "-")
def test_ranges(registry: Registry, value: str) -> None:
    digest = registry.manifest(NAME).json()["config"]["digest"]
    answer = ask(registry, f"/v2/{NAME}/blobs/{digest}".encode(), headers=f"Range: {value}\r\n".encode())
    assert answer.status in {200, 206, 400, 416}, answer


@settings(max_examples=EXAMPLES // 2)
@given(
    st.text(string.ascii_uppercase, min_size=1, max_size=12),
    st.sampled_from(["/v2/", "/v2/hello/manifests/latest"]),
)
@example("CONNECT", "/v2/")
@example("TRACE", "/v2/hello/manifests/latest")
@example("OPTIONS", "/v2/hello/manifests/latest")
def test_methods(registry: Registry, method: str, path: str) -> None:
    assert ask(registry, path.encode(), method=method.encode()).status < 500


@settings(max_examples=EXAMPLES // 2)
@given(VISIBLE, VISIBLE)
@example("*/*;q=" + "9" * 1000, "*")
@example(",,,;;;", '"' * 200)
def test_header_values(registry: Registry, accept: str, entity_tag: str) -> None:
    headers = f"Accept: {accept}\r\nIf-None-Match: {entity_tag}\r\n".encode()
    assert ask(registry, f"/v2/{NAME}/manifests/latest".encode(), headers=headers).status in {200, 304, 406}


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v2/\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS, as docker tries first
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["empty", "no-target", "no-version", "tls", "negative-length", "huge-header", "huge-target"],
)
def test_what_is_not_http(registry: Registry, sent: bytes) -> None:
    with contextlib.suppress(http.client.HTTPException, ConnectionError, TimeoutError):  # hanging up will do
        assert raw(registry.port, sent, seconds=2).status < 500
    assert_alive(registry)


async def test_nonsense_on_one_connection_does_not_harm_the_next_request(registry: Registry) -> None:
    base = f"http://{registry.host}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for path in [
            "/v2/UPPER/manifests/x",
            "/v2/hello/manifests/-",
            "/v2/helo/manifests/latest",
            "/v2/x/y/z",
        ]:
            async with session.get(base + path) as answer:
                assert 400 <= answer.status < 500
                assert (await answer.json())["errors"]
            async with session.get(base + f"/v2/{NAME}/manifests/latest") as answer:
                assert answer.status == 200


def test_names_never_reach_nix_as_code(registry: Registry) -> None:
    """Attributes that every set inherits from Nix, and paths into a derivation, are not packages."""
    for name in ["hello.drvpath", "hello.outpath", "builtins", "lib", "hello.type", "hello.all", "allgood"]:
        assert_clean(ask(registry, f"/v2/{name}/manifests/latest".encode()))
        assert registry.manifest(name).status >= 400, name
