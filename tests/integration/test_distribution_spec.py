"""Our own conformance suite: the OCI distribution-spec 1.1, section by section, as a read-only registry must be.

What the specification leaves open (conditions, parts of blobs, several connections) is in test_protocol.py. Each test
names its section; the last one sees to it that none is forgotten.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import pytest

from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.server import (
    DOCKER_MANIFEST,
    OCI_MANIFEST,
    Image,
    Registry,
    Response,
    digest_of,
    serving,
)
from tests.integration.sources_git import Repository

NAME = "shell/hello"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
ABSENT = "sha256:" + "0" * 64
TAGS = ["Beta", "alpha", "beta", "Gamma", "v1.0"]
CODES = {
    *(
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
    ),
    *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
    *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
}
# The normative sections, and why some have no test here.
SECTIONS = {
    "Pulling manifests": "",
    "Pulling blobs": "",
    "Checking if content exists in the registry": "",
    "Pushing blobs": "",
    "Pushing a blob monolithically": "",
    "Pushing a blob in chunks": "",
    "Mounting a blob from another repository": "",
    "Pushing Manifests": "",
    "Pushing Manifests with Subject": "",
    "Listing Tags": "",
    "Listing Referrers": "",
    "Deleting tags": "",
    "Deleting Manifests": "",
    "Deleting Blobs": "",
    "Unavailable Referrers API": "for clients",
    "Enabling the Referrers API": "nothing was ever pushed, so there are no old referrers to move",
    "Determining Support": "",
    "Error Codes": "",
    "Warnings": "a registry may send warnings; this one has none to send",
}
Test = TypeVar("Test", bound=Callable[..., object])


def section(*titles: str) -> Callable[[Test], Test]:
    def mark(test: Test) -> Test:
        test.sections = titles  # type: ignore[attr-defined]
        return test

    return mark


@pytest.fixture(scope="module")
def image(registry: Registry) -> Image:
    return registry.pull(NAME)


@pytest.fixture(scope="module")
def tagged(scratch: Path, prepared_store: ChrootStore) -> Iterator[Registry]:
    """A registry with a source that has several tags, below `tagged/`; nobody else makes images there."""
    repository = Repository.create(scratch / "tagged.git")
    repository.commit({"default.nix": f"import {EXAMPLES}"})
    for tag in TAGS:
        repository.git("tag", tag)
    config = f'[sources.git]\nspec = "{repository.url}"\nprefix = "tagged"\nrestricted = false\n'
    registry = Registry(scratch / "tagged", prepared_store.root, config=config, format="nix-snapshotter")
    with serving(registry) as running:
        yield running


def codes(answer: Response) -> set[str]:
    """Of an error's body; asserts its form."""
    errors = answer.json()["errors"]
    assert errors
    for error in errors:
        assert re.fullmatch("[A-Z_]+", error["code"])
        assert isinstance(error["message"], str)
    return {error["code"] for error in errors}


@section("Determining Support")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_end_1(registry: Registry, method: str) -> None:
    assert registry.request(method, "/v2/").status == 200


@section("Pulling manifests")
def test_end_3_a_manifest_by_tag_and_by_digest(registry: Registry, image: Image) -> None:
    for reference in ("latest", image.digest):
        answer = registry.manifest(NAME, reference)
        assert answer.status == 200
        assert digest_of(answer.body) == answer.headers["docker-content-digest"] == image.digest
        assert answer.headers["content-type"] == answer.json()["mediaType"] == OCI_MANIFEST
        assert ";" not in answer.headers["content-type"], "no parameters"


@section("Pulling manifests")
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("helo", "latest"),
        (NAME, "nosuchtag"),
        (NAME, ABSENT),
        (NAME, "sha512:" + "0" * 128),
        (NAME, ".INVALID_TAG"),
        (NAME, "-x"),
        (NAME, "t" * 129),
        (NAME, "a~b"),
    ],
)
def test_end_3_what_is_not_found(registry: Registry, name: str, reference: str) -> None:
    answer = registry.manifest(name, reference)
    assert answer.status == 404
    assert codes(answer) == {"MANIFEST_UNKNOWN"}
    assert registry.head(f"/v2/{name}/manifests/{reference}").status == 404


@section("Pulling manifests")
def test_end_3_names(registry: Registry) -> None:
    """The grammar of names, to its edges."""
    for name in ("a", "a.b", "a_b", "a__b", "a-b", "a--b", "a/b.c/d", "0", "a" * 255):
        assert registry.get(f"/v2/{name}/blobs/{ABSENT}").status == 404, name
    for name in ("A", "-a", "a-", "a..b", "a___b", "a._b", "a/", "/a", "a//b", "a:b", "ä", "a" * 256):
        answer = registry.get(f"/v2/{quote(name, safe='/:')}/blobs/{ABSENT}")
        assert (answer.status, codes(answer)) == (400, {"NAME_INVALID"}), name


@section("Pulling manifests")
@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (OCI_MANIFEST, OCI_MANIFEST),
        (DOCKER_MANIFEST, DOCKER_MANIFEST),
        (f"{DOCKER_MANIFEST}, {OCI_MANIFEST}", OCI_MANIFEST),
        (f"{DOCKER_MANIFEST};q=0.9, {OCI_MANIFEST};q=0.8", DOCKER_MANIFEST),
        (f"{DOCKER_MANIFEST};q=0.8, {OCI_MANIFEST};q=0.9", OCI_MANIFEST),
        (f"{OCI_MANIFEST};q=0, */*;q=0.1", DOCKER_MANIFEST),
        ("*/*", OCI_MANIFEST),
        ("text/html", OCI_MANIFEST),
    ],
)
def test_end_3_what_the_client_accepts(registry: Registry, accept: str, media_type: str) -> None:
    """Content negotiation, in any number of Accept headers; a manifest that is got can be got by its digest."""
    answer = registry.manifest(NAME, accept=accept)
    assert (answer.status, answer.headers["content-type"]) == (200, media_type)
    assert answer.json()["mediaType"] == media_type
    digest = answer.headers["docker-content-digest"]
    again = registry.manifest(NAME, digest, accept="text/html")
    assert (again.body, again.headers["content-type"]) == (answer.body, media_type)


@section("Pulling manifests")
def test_end_3_an_index_where_it_is_liked_best(registry: Registry) -> None:
    name = f"nix-snapshotter/{NAME}"
    for accept, media_type in (
        (f"{OCI_INDEX}, {OCI_MANIFEST}", OCI_INDEX),
        (f"{OCI_INDEX};q=0.5, {OCI_MANIFEST}", OCI_MANIFEST),
        (f"{OCI_INDEX};q=0, */*", OCI_MANIFEST),
    ):
        assert registry.manifest(name, accept=accept).headers["content-type"] == media_type


@section("Pulling blobs")
def test_end_2_blobs(registry: Registry, image: Image) -> None:
    for digest, content in image.blobs.items():
        answer = registry.get(f"/v2/{NAME}/blobs/{digest}")
        assert (answer.status, answer.body) == (200, content)
        assert answer.headers["docker-content-digest"] == digest
        part = registry.get(f"/v2/{NAME}/blobs/{digest}", Range="bytes=1-2")
        assert (part.status, part.body) == (206, content[1:3])
    missing = registry.get(f"/v2/{NAME}/blobs/{ABSENT}")
    assert (missing.status, codes(missing)) == (404, {"BLOB_UNKNOWN"})


@section("Checking if content exists in the registry")
def test_head(registry: Registry, image: Image) -> None:
    manifest = registry.head(f"/v2/{NAME}/manifests/latest", Accept=OCI_MANIFEST)
    assert manifest.headers["content-length"] == str(len(image.manifest_bytes))
    assert manifest.headers["docker-content-digest"] == image.digest
    for digest, content in image.blobs.items():
        answer = registry.head(f"/v2/{NAME}/blobs/{digest}")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["docker-content-digest"] == digest
    for path in (f"manifests/{ABSENT}", f"blobs/{ABSENT}"):
        assert registry.head(f"/v2/{NAME}/{path}").status == 404


@section(
    "Pushing blobs",
    "Pushing a blob monolithically",
    "Pushing a blob in chunks",
    "Mounting a blob from another repository",
    "Pushing Manifests",
    "Pushing Manifests with Subject",
    "Deleting tags",
    "Deleting Manifests",
    "Deleting Blobs",
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "blobs/uploads/"),
        ("POST", f"blobs/uploads/?digest={ABSENT}"),
        ("POST", f"blobs/uploads/?mount={ABSENT}&from=other"),
        ("PATCH", "blobs/uploads/0a1b"),
        ("PUT", f"blobs/uploads/0a1b?digest={ABSENT}"),
        ("PUT", "manifests/latest"),
        ("PUT", f"manifests/{ABSENT}"),
        ("DELETE", "manifests/latest"),
        ("DELETE", f"manifests/{ABSENT}"),
        ("DELETE", f"blobs/{ABSENT}"),
        ("DELETE", "blobs/uploads/0a1b"),
    ],
)
def test_nothing_is_pushed_or_deleted(registry: Registry, method: str, path: str) -> None:
    answer = registry.request(method, f"/v2/{NAME}/{path}", {"Content-Length": "0"})
    assert (answer.status, codes(answer)) == (405, {"UNSUPPORTED"})
    assert answer.headers["allow"] == "GET, HEAD"


@section("Pushing a blob in chunks")
def test_end_13_there_are_no_uploads(registry: Registry) -> None:
    answer = registry.get(f"/v2/{NAME}/blobs/uploads/0a1b")
    assert (answer.status, codes(answer)) == (404, {"BLOB_UPLOAD_UNKNOWN"})


@section("Pushing Manifests")
def test_a_push_that_is_wrong_in_itself_is_told_so(registry: Registry) -> None:
    for path, code in (
        (f"/v2/{NAME}/manifests/sha256:totallywrong", "DIGEST_INVALID"),
        ("/v2/Shell/manifests/latest", "NAME_INVALID"),
    ):
        answer = registry.request("PUT", path, {"Content-Length": "0"})
        assert (answer.status, codes(answer)) == (400, {code})


def listed(registry: Registry, target: str, key: str) -> list[list[str]]:
    """All pages, by their links."""
    pages = []
    while target:
        answer = registry.get(target)
        assert answer.status == 200
        pages.append(answer.json()[key])
        link = answer.headers.get("link", "")
        match = re.fullmatch(r'<(/v2/[^>]*)>; rel="next"', link)
        assert match or not link
        target = match[1] if match else ""
    return pages


@section("Listing Tags")
def test_end_8_tags(tagged: Registry) -> None:
    name = f"tagged/{NAME}"
    path = f"/v2/{name}/tags/list"
    tags = ["alpha", "Beta", "beta", "Gamma", "latest", "main", "v1.0"]  # case counts for nothing
    assert tagged.get(path).json() == {"name": name, "tags": tags}
    assert "link" not in tagged.get(path).headers
    for size in (1, 2, 3, len(tags)):
        pages = listed(tagged, f"{path}?n={size}", "tags")
        assert list(chain(*pages)) == tags
        assert {len(page) for page in pages[:-1]} <= {size}
    assert listed(tagged, f"{path}?n=0", "tags") == [[]]
    assert listed(tagged, f"{path}?last=Beta", "tags") == [tags[2:]]
    assert listed(tagged, f"{path}?n=2&last=BETB", "tags")[0] == ["Gamma", "latest"], (
        "a tag that is not there"
    )
    assert listed(tagged, f"{path}?last=v1.0", "tags") == [[]]
    for tag in tags:
        assert tagged.manifest(name, tag).status == 200


@section("Listing Tags")
@pytest.mark.parametrize("number", ["-1", "x", "", "1.5", "9" * 5000])
def test_end_8_no_number(registry: Registry, number: str) -> None:
    for path in (f"/v2/{NAME}/tags/list", "/v2/_catalog"):
        answer = registry.get(f"{path}?n={number}")
        assert answer.status == 400
        assert codes(answer) <= CODES


def test_catalogue(tagged: Registry) -> None:
    """Of Docker's API: the names under which images were made, none that was only asked for."""
    names = ["amd64/curl", "arm64/shell/hello", "classic/hello", "curl", "hello", "curl/hello"]
    for name in [*names, "helo", "hello/curl/curl", "shell/arm64/hello"]:  # the last two are images of above
        tagged.manifest(name, accept=OCI_MANIFEST)
    tagged.pull("tagged/hello")
    found = tagged.get("/v2/_catalog").json()["repositories"]
    assert set(found) - {f"tagged/{NAME}"} == {*names, "tagged/hello"}
    assert found == sorted(found)
    for size in (1, 4, 1000):
        assert list(chain(*listed(tagged, f"/v2/_catalog?n={size}", "repositories"))) == found
    assert listed(tagged, "/v2/_catalog?n=0", "repositories") == [[]]
    assert listed(tagged, f"/v2/_catalog?last={found[0]}", "repositories") == [found[1:]]


@section("Listing Referrers")
def test_end_12_referrers(registry: Registry, image: Image) -> None:
    for digest in (image.digest, ABSENT, "sha512:" + "0" * 128):
        answer = registry.get(f"/v2/{NAME}/referrers/{digest}")
        assert (answer.status, answer.headers["content-type"]) == (200, OCI_INDEX)
        assert answer.json() == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        assert "oci-filters-applied" not in answer.headers
        kind = quote("application/vnd.example+json", safe="")
        filtered = registry.get(f"/v2/{NAME}/referrers/{digest}?artifactType={kind}")
        assert (filtered.status, filtered.body) == (200, answer.body)
        assert filtered.headers["oci-filters-applied"] == "artifactType"


@section("Listing Referrers")
def test_end_12_requests_that_are_invalid(registry: Registry) -> None:
    for path, code in (("sha256:abc", "DIGEST_INVALID"), ("latest", "DIGEST_INVALID")):
        answer = registry.get(f"/v2/{NAME}/referrers/{path}")
        assert (answer.status, codes(answer)) == (400, {code})
    assert codes(registry.get(f"/v2/Shell/referrers/{ABSENT}")) == {"NAME_INVALID"}


@section("Error Codes", "Checking if content exists in the registry")
def test_head_is_get_without_a_body(registry: Registry, image: Image) -> None:
    """In every header, whatever is answered."""
    paths = [
        "/v2/",
        f"/v2/{NAME}/manifests/latest",
        f"/v2/{NAME}/manifests/{image.digest}",
        f"/v2/nix-snapshotter/{NAME}/manifests/latest",
        *(f"/v2/{NAME}/blobs/{digest}" for digest in image.blobs),
        f"/v2/{NAME}/blobs/{ABSENT}",
        f"/v2/{NAME}/manifests/{ABSENT}",
        f"/v2/{NAME}/manifests/.x",
        "/v2/helo/manifests/latest",
        "/v2/Hello/manifests/latest",
        f"/v2/{NAME}/tags/list?n=1",
        f"/v2/{NAME}/referrers/{ABSENT}?artifactType=x",
        "/v2/_catalog?n=1",
        "/v2/nothing",
    ]
    for path in paths:
        for accept in (OCI_MANIFEST, DOCKER_MANIFEST):
            head, get = registry.head(path, Accept=accept), registry.get(path, Accept=accept)
            assert head.body == b""
            assert head.status == get.status, path
            kept = [
                {k: v for k, v in answer.headers.items() if k not in {"date", "x-request-id"}}
                for answer in (head, get)
            ]
            assert kept[0] == kept[1], path


@section("Error Codes")
@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/v2/{NAME}/blobs/sha256:abc", 400, "DIGEST_INVALID"),
        (f"/v2/{NAME}/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        (f"/v2/{NAME}/blobs/{ABSENT.upper()}", 400, "DIGEST_INVALID"),
        (f"/v2/{NAME}/manifests/md5:{'0' * 32}", 400, "DIGEST_INVALID"),
        ("/v2/Shell/hello/tags/list", 400, "NAME_INVALID"),
        ("/v2/-hello/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/nothing", 404, "NAME_UNKNOWN"),
        ("/v2/a/b/c", 404, "NAME_UNKNOWN"),
    ],
)
def test_errors(registry: Registry, path: str, status: int, code: str) -> None:
    answer = registry.get(path)
    assert (answer.status, codes(answer)) == (status, {code})
    assert code in CODES
    assert answer.headers["content-type"].partition(";")[0] == "application/json"
    json.loads(answer.body)


def test_no_section_is_forgotten() -> None:
    tested = {title for name in dir(sys.modules[__name__]) for title in _sections(name)}
    assert tested == {title for title, excuse in SECTIONS.items() if not excuse}


def _sections(name: str) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(getattr(sys.modules[__name__], name), "sections", ())
    return found
