from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from nixery_snap.imaging.request import ImageFormat, NameGrammar
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci.digest import Digest
from nixery_snap.registry.app import make_app
from nixery_snap.registry.context import Registry, new_memory
from nixery_snap.web.hot_answers import HotAnswers
from tests.unit.web.servers import Server, serving

SMALL, LARGE = b"0123456789" * 10, bytes(range(256)) * 4096
DIGEST = Digest.of(SMALL)


@pytest.fixture(params=["file", "memory"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    blobs = Blobs(ObjectStore("memory://" if request.param == "memory" else f"file://{tmp_path}"))
    for content in (SMALL, LARGE):
        with blobs.writer() as writer:
            writer.write(content)
            writer.commit()
    grammar = NameGrammar(ImageFormat.CLASSIC, ("x86_64-linux",), {})
    pipeline = cast("Any", None)  # blobs are served without it
    registry = Registry(pipeline, blobs, grammar, 1, new_memory(2**20))
    with serving("uvloop", make_app(registry, access_log=False), HotAnswers()) as running:
        yield running


def url(content: bytes) -> str:
    return f"/v2/any/name/blobs/{Digest.of(content)}"


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_get_and_head(server: Server, content: bytes) -> None:
    with server.connect() as client:
        for _ in range(2):
            for method in ("GET", "HEAD"):
                response = client.get(url(content), method=method)
                assert response.status == 200
                assert response.body == (content if method == "GET" else b"")
                assert response.headers["content-length"] == str(len(content))
                assert response.headers["docker-content-digest"] == str(Digest.of(content))
                assert response.headers["etag"] == f'"{Digest.of(content)}"'
                assert response.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_ranges(server: Server, content: bytes) -> None:
    size = len(content)
    with server.connect() as client:
        for header, start, end in (
            ("0-0", 0, 1),
            ("5-9", 5, 10),
            ("5-", 5, size),
            ("-5", size - 5, size),
            (f"-{size + 5}", 0, size),
            (f"{size - 1}-{size + 5}", size - 1, size),
            ("0-18446744073709551615", 0, size),
        ):
            response = client.get(url(content), f"Range: bytes={header}")
            assert (response.status, response.body) == (206, content[start:end]), header
            assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
            head = client.get(url(content), f"Range: bytes={header}", method="HEAD")
            assert (head.status, head.headers["content-length"]) == (200, str(size))
        for header in (f"{size}-", "9-5", "-0", "-", "x-y", "", "1", "1-2-3", "99999999999999999999-"):
            response = client.get(url(content), f"Range: bytes={header}")
            assert response.status == 416, header
            assert response.headers["content-range"] == f"bytes */{size}"
        for header in ("bytes=0-1,5-6", "lines=0-5", "0-5"):
            response = client.get(url(content), f"Range: {header}")
            assert (response.status, response.body) == (200, content), header


def test_conditions(server: Server) -> None:
    with server.connect() as client:
        for matching in (f'"{DIGEST}"', f'W/"{DIGEST}"', "*", f'"x", "{DIGEST}"'):
            response = client.get(url(SMALL), f"If-None-Match: {matching}")
            assert (response.status, response.body) == (304, b""), matching
            assert response.headers["etag"] == f'"{DIGEST}"'
        assert client.get(url(SMALL), 'If-None-Match: "other"').status == 200
        assert client.get(url(SMALL), "Range: bytes=0-4", f'If-Range: "{DIGEST}"').body == SMALL[:5]
        for other in ('"other"', f'W/"{DIGEST}"', "Sat, 01 Jan 2000 00:00:00 GMT"):
            assert client.get(url(SMALL), "Range: bytes=0-4", f"If-Range: {other}").body == SMALL


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/v2/x/blobs/{Digest.of(b'absent')}", 404, "BLOB_UNKNOWN"),
        ("/v2/x/blobs/sha256:123", 400, "DIGEST_INVALID"),
        ("/v2/x/blobs/latest", 400, "DIGEST_INVALID"),
        (f"/v2/x/blobs/sha512:{'0' * 128}", 404, "BLOB_UNKNOWN"),
        (f"/v2/X/blobs/{DIGEST}", 400, "NAME_INVALID"),
        (f"/v2/x/../y/blobs/{DIGEST}", 400, "NAME_INVALID"),
    ],
)
def test_errors(server: Server, path: str, status: int, code: str) -> None:
    with server.connect() as client:
        response = client.get(path)
        assert response.status == status
        assert f'"code":"{code}"'.encode() in response.body
        assert client.get(path, method="HEAD").status == status
