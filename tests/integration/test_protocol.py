"""Pulling, seen from a client: what the specification (test_distribution_spec.py) leaves to HTTP and to us."""

import re

import pytest

from tests.integration.server import OCI_MANIFEST, Image, Registry, digest_of

NAME = "shell/hello"
ABSENT = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def image(registry: Registry) -> Image:
    return registry.pull(NAME)


@pytest.fixture(scope="module", params=["largest", "smallest"])
def layer(image: Image, request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """Digest and bytes of a blob: big ones are served from their files, small ones from memory."""
    by_size = sorted(image.blobs.items(), key=lambda item: len(item[1]))
    return by_size[-1 if request.param == "largest" else 0]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_version_check(registry: Registry, method: str, path: str) -> None:
    answer = registry.request(method, path)
    assert answer.status == 200
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


def test_a_failed_head_keeps_its_reason_for_the_get(registry: Registry) -> None:
    """HEAD's answer has no body: clients ask again by GET, and must read why."""
    assert registry.head("/v2/failstobuild/manifests/latest").status >= 400
    assert "no acceptable C compiler" in registry.manifest("failstobuild").error["message"]


def test_the_mirror_parameter_is_ignored(registry: Registry, image: Image) -> None:
    """containerd appends it to every request when it goes through a mirror."""
    assert registry.get("/v2/?ns=registry.example").status == 200
    assert registry.manifest(f"{NAME}", "latest?ns=registry.example").body == image.manifest_bytes
    for digest, content in image.blobs.items():
        assert registry.get(f"/v2/{NAME}/blobs/{digest}?ns=registry.example").body == content


def test_blob_headers(registry: Registry, image: Image) -> None:
    for digest, content in image.blobs.items():
        answer = registry.get(f"/v2/{NAME}/blobs/{digest}")
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["docker-content-digest"] == digest
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-type"] == "application/octet-stream"
        assert "content-encoding" not in answer.headers


def test_entity_tags(registry: Registry, image: Image, layer: tuple[str, bytes]) -> None:
    paths = [
        f"/v2/{NAME}/manifests/latest",
        f"/v2/{NAME}/manifests/{image.digest}",
        f"/v2/{NAME}/blobs/{layer[0]}",
    ]
    for path in paths:
        tag = registry.get(path, Accept=OCI_MANIFEST).headers["etag"]
        assert tag.startswith('"'), "a strong tag: same tag, same bytes"
        for value in (tag, f'"other", {tag}', f"W/{tag}", "*"):
            answer = registry.get(path, Accept=OCI_MANIFEST, If_None_Match=value)
            assert (answer.status, answer.body) == (304, b""), (path, value)
            assert answer.headers["etag"] == tag
        assert registry.get(path, Accept=OCI_MANIFEST, If_None_Match='"other"').status == 200


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-99999999999", slice(5, None)),
        ("bytes=-99999999999", slice(0, None)),
    ],
)
def test_part_of_a_blob(registry: Registry, layer: tuple[str, bytes], value: str, part: slice) -> None:
    digest, content = layer
    answer = registry.get(f"/v2/{NAME}/blobs/{digest}", Range=value)
    assert answer.status == 206
    assert answer.body == content[part]
    begin, end, _ = part.indices(len(content))
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(content)}"
    assert answer.headers["content-length"] == str(end - begin)


@pytest.mark.parametrize("beyond", ["bytes={size}-", "bytes={size}-{size}", "bytes=99999999999-", "bytes=-0"])
def test_a_part_that_is_not_there(registry: Registry, layer: tuple[str, bytes], beyond: str) -> None:
    digest, content = layer
    answer = registry.get(f"/v2/{NAME}/blobs/{digest}", Range=beyond.format(size=len(content)))
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{len(content)}"


@pytest.mark.parametrize(
    "value", ["bytes=1-0", "bytes=a-b", "lines=0-1", "bytes", "bytes=--1", "0-1", "bytes=1-2-3"]
)
def test_a_malformed_range_is_ignored(registry: Registry, layer: tuple[str, bytes], value: str) -> None:
    """RFC 9110, section 14.2: an invalid Range is as none; refusing it is allowed, failing is not."""
    digest, content = layer
    answer = registry.get(f"/v2/{NAME}/blobs/{digest}", Range=value)
    assert answer.status in {200, 400, 416}
    assert answer.status != 200 or answer.body == content


def test_several_parts_at_once(registry: Registry, layer: tuple[str, bytes]) -> None:
    """All of it or each part: what may not happen is one part for all (RFC 9110, section 15.3.7)."""
    digest, content = layer
    answer = registry.get(f"/v2/{NAME}/blobs/{digest}", Range="bytes=0-3,10-13")
    if answer.status == 200:
        assert answer.body == content
        return
    assert answer.status == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert len(re.findall(rb"Content-Range: bytes", answer.body, re.IGNORECASE)) == 2
    assert content[0:4] in answer.body
    assert content[10:14] in answer.body


def test_a_part_only_of_the_very_same_content(registry: Registry, layer: tuple[str, bytes]) -> None:
    digest, content = layer
    path = f"/v2/{NAME}/blobs/{digest}"
    assert registry.get(path, Range="bytes=0-9", If_Range='"other"').body == content
    tag = registry.get(path).headers["etag"]
    assert registry.get(path, Range="bytes=0-9", If_Range=tag).body == content[:10]


def test_a_blob_is_served_only_once_it_was_assembled(registry: Registry) -> None:
    """By its digest, whatever the name; the empty blob is never the answer for one that is missing."""
    empty = digest_of(b"")
    assert registry.get(f"/v2/{NAME}/blobs/{empty}").status == 404


def test_health(registry: Registry) -> None:
    assert registry.get("/healthz").status == 200
    assert registry.get("/readyz").status == 200


def test_a_request_id_is_in_the_log(registry: Registry) -> None:
    identifier = registry.manifest("helo").headers["x-request-id"]
    events = {line["event"] for line in registry.log_lines() if line.get("request_id") == identifier}
    assert "request" in events


def test_no_two_requests_have_one_id(registry: Registry) -> None:
    """Not even those whose answer is remembered: an id that leads to somebody else's request is worse than none."""
    answers = [registry.manifest(NAME) for _ in range(3)]
    ids = [answer.headers["x-request-id"] for answer in answers if "x-request-id" in answer.headers]
    assert len(set(ids)) == len(ids)
