import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nixery_snap import errors
from nixery_snap.nix.base32 import ALPHABET
from nixery_snap.ports import Location, SignedUrl, StoredBytes, StoredFile
from tests.unit.binary_cache.caches import FRONT_PAGE, PUBLIC_KEY, InMemory, serving_cache
from tests.unit.web.servers import LOOPS, Client, Response, Server

HASH, OTHER, BROKEN, DOWN, PASSED_ON = "0" * 32, "1" * 32, "2" * 32, "9" * 32, "a" * 32
NARINFO = f"StorePath: /nix/store/{HASH}-hello\nURL: nar/x\n".encode()
LISTING = json.dumps({"version": 1, "root": {"type": "directory", "entries": {}}}).encode()
SMALL, LARGE = b"0123456789" * 10, bytes(range(256)) * 4096
SMALL_NAR, LARGE_NAR, AWAY_NAR = f"{'a' * 52}.nar", f"{'b' * 52}.nar.zst", f"{'c' * 64}.nar.xz"
BY_PATH = f"{'d' * 84}.nar.xz"  # not named by the hash of the file
DRV = f"{HASH}-a+b?c=d.e.drv"
LOG = "a lög\n".encode()
SECRET = "s3cret-/srv/storage"
AWAY = "https://bucket.example/nar?X-Signature=abc%2Fdef"


@pytest.fixture
def cache(tmp_path: Path) -> InMemory:
    files: dict[str, Location | Exception] = {
        f"{HASH}.ls": StoredBytes(LISTING),
        f"nar/{AWAY_NAR}": SignedUrl(AWAY, f"{AWAY}&head", 12345),
        f"nar/{BROKEN}.nar": errors.StorageError(SECRET),
        f"{BROKEN}.ls": ZeroDivisionError(SECRET),
        f"log/{BROKEN}-x.drv": errors.SourceError(SECRET),
    }
    for name, content in (
        (f"nar/{SMALL_NAR}", SMALL),
        (f"nar/{LARGE_NAR}", LARGE),
        (f"nar/{BY_PATH}", LARGE),
        (f"log/{DRV}", LOG),
        (f"{OTHER}.ls", LARGE),
    ):
        file = tmp_path / name.replace("/", "-")
        file.write_bytes(content)
        files[name] = StoredFile(file, len(content))
    corrupt = errors.CorruptPath("https://cache.example", "/nix/store/x", "two\nlines")
    down = errors.SubstituterUnreachable("https://cache.example", SECRET)
    return InMemory({HASH: NARINFO, BROKEN: errors.StorageError(SECRET), OTHER: corrupt, DOWN: down}, files)


@pytest.fixture
def server(cache: InMemory) -> Iterator[Server]:
    with serving_cache(cache) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.connect() as connected:
        yield connected


def hot(client: Client, cache: InMemory, path: str, *headers: str) -> bool:
    """Whether the second time the cache, or the application, is not asked."""
    first = client.get(path, *headers)
    asked = len(cache.asked)
    again = client.get(path, *headers)
    assert (again.status, again.body) == (first.status, first.body)
    # A remembered answer has no id of the request, as that would be another's.
    return len(cache.asked) == asked and "x-request-id" not in again.headers


THERE = [
    ("nix-cache-info", b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n", "text/x-nix-cache-info"),
    ("public-key", f"{PUBLIC_KEY}\n".encode(), "text/plain; charset=utf-8"),
    (f"{HASH}.narinfo", NARINFO, "text/x-nix-narinfo"),
    (f"{HASH}.ls", LISTING, "application/json"),
    (f"{OTHER}.ls", LARGE, "application/json"),
    (f"nar/{SMALL_NAR}", SMALL, "application/x-nix-nar"),
    (f"nar/{LARGE_NAR}", LARGE, "application/x-nix-nar"),
    (f"nar/{BY_PATH}", LARGE, "application/x-nix-nar"),
    (f"log/{DRV}", LOG, "text/plain; charset=utf-8"),
]


@pytest.mark.parametrize(("path", "content", "content_type"), THERE, ids=[row[0][-12:] for row in THERE])
def test_get_and_head(client: Client, path: str, content: bytes, content_type: str) -> None:
    for _ in range(2):
        get = client.get(f"/nix-cache/{path}")
        assert (get.status, get.body) == (200, content)
        assert get.headers["content-type"] == content_type
        assert "docker-distribution-api-version" not in get.headers
        head = client.get(f"/nix-cache/{path}", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert stable(head) == stable(get)


def stable(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in {"date", "x-request-id"}}


@pytest.mark.parametrize("path", [path for path, _, _ in THERE])
def test_conditions(client: Client, path: str) -> None:
    whole = client.get(f"/nix-cache/{path}")
    etag = whole.headers["etag"]
    assert etag.startswith('"')
    for matching in (etag, f"W/{etag}", "*", f'"x", {etag}'):
        response = client.get(f"/nix-cache/{path}", f"If-None-Match: {matching}")
        assert (response.status, response.body) == (304, b"")
        assert response.headers["etag"] == etag
        assert response.headers["cache-control"] == whole.headers["cache-control"]
    assert client.get(f"/nix-cache/{path}", 'If-None-Match: "other"').body == whole.body


def test_etags_are_of_the_content(client: Client, cache: InMemory) -> None:
    assert client.get(f"/nix-cache/{HASH}.narinfo").headers["etag"] == (
        f'"{hashlib.sha256(NARINFO).hexdigest()}"'
    )
    log = cache.files[f"log/{DRV}"]
    assert isinstance(log, StoredFile)
    before = client.get(f"/nix-cache/log/{DRV}").headers["etag"]
    log.path.write_bytes(LOG.upper())
    assert client.get(f"/nix-cache/log/{DRV}", f"If-None-Match: {before}").body == LOG.upper()


@pytest.mark.parametrize(
    ("file", "content"), [(SMALL_NAR, SMALL), (LARGE_NAR, LARGE)], ids=["small", "large"]
)
def test_ranges_of_a_nar(client: Client, file: str, content: bytes) -> None:
    size, url = len(content), f"/nix-cache/nar/{file}"
    for header, start, end in (("0-0", 0, 1), ("5-9", 5, 10), ("5-", 5, size), ("-5", size - 5, size)):
        response = client.get(url, f"Range: bytes={header}")
        assert (response.status, response.body) == (206, content[start:end]), header
        assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    response = client.get(url, f"Range: bytes={size}-")
    assert (response.status, response.headers["content-range"]) == (416, f"bytes */{size}")
    assert response.body == f"there are {size} bytes; ask for bytes=FIRST-LAST within them\n".encode()
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get(url, "Range: bytes=0-4", f'If-Range: "{file}"').body == content[:5]
    assert client.get(url, "Range: bytes=0-4", 'If-Range: "other"').body == content


def test_a_nar_that_is_elsewhere(client: Client) -> None:
    response = client.get(f"/nix-cache/nar/{AWAY_NAR}")
    assert (response.status, response.headers["location"]) == (307, AWAY)
    assert response.headers["cache-control"] == "no-store"
    head = client.get(f"/nix-cache/nar/{AWAY_NAR}", method="HEAD")
    assert (head.status, head.headers["location"]) == (307, f"{AWAY}&head")
    assert client.get(f"/nix-cache/nar/{AWAY_NAR}", f'If-None-Match: "{AWAY_NAR}"').status == 304


@pytest.mark.parametrize("path", ["nix-cache-info", "public-key", f"{HASH}.narinfo", f"{HASH}.ls"])
def test_what_does_not_change_is_hot(client: Client, cache: InMemory, path: str) -> None:
    assert hot(client, cache, f"/nix-cache/{path}")


def test_what_is_not_kept_yet_is_asked_for_each_time(client: Client, cache: InMemory) -> None:
    """A cache behind ours may pack or build it anew, and then has it under another URL."""
    for number in "de":
        text = f"StorePath: /nix/store/{PASSED_ON}-x\nURL: nar/{number * 84}.nar.xz\n".encode()
        cache.narinfos[PASSED_ON] = text
        response = client.get(f"/nix-cache/{PASSED_ON}.narinfo")
        assert (response.body, response.headers["cache-control"]) == (text, "no-cache")


def test_small_nars_are_hot_and_logs_are_not(client: Client, cache: InMemory) -> None:
    assert hot(client, cache, f"/nix-cache/nar/{SMALL_NAR}")
    assert hot(client, cache, f"/nix-cache/nar/{SMALL_NAR}", "Range: bytes=1-2")
    assert not hot(client, cache, f"/nix-cache/log/{DRV}")
    assert not hot(client, cache, f"/nix-cache/nar/{AWAY_NAR}"), "its URL expires"


def test_how_long_answers_hold(client: Client) -> None:
    def control(path: str) -> str:
        return client.get(f"/nix-cache/{path}").headers["cache-control"]

    assert control(f"{HASH}.narinfo").startswith("public, max-age=")
    assert "immutable" in control(f"nar/{LARGE_NAR}")
    assert "immutable" not in control(f"nar/{BY_PATH}")
    assert control(f"log/{DRV}") == "no-cache"
    assert control(f"{'3' * 32}.narinfo") == "no-store"


def test_what_is_published_later_is_found(client: Client, cache: InMemory) -> None:
    late = "z" * 32
    assert client.get(f"/nix-cache/{late}.narinfo").status == 404
    cache.narinfos = {late: NARINFO}
    assert client.get(f"/nix-cache/{late}.narinfo").body == NARINFO


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{'3' * 32}.narinfo", f"no narinfo of {'3' * 32} here"),
        (f"{'3' * 32}.ls", f"no listing of {'3' * 32} here"),
        (f"nar/{'3' * 52}.nar.xz", f"no NAR {'3' * 52}.nar.xz here"),
        (f"log/{'3' * 32}-x.drv", f"no log of {'3' * 32}-x.drv here"),
        (f"{OTHER}.narinfo", "the binary cache https://cache.example has a bad /nix/store/x: two lines"),
        ("", "a binary cache has nothing at this path; begin with nix-cache-info"),
        ("nar/", "a binary cache has nothing at this path; begin with nix-cache-info"),
    ],
)
def test_what_is_not_there(client: Client, path: str, message: str) -> None:
    for _ in range(2):
        response = client.get(f"/nix-cache/{path}")
        assert (response.status, response.body.decode()) == (404, f"{message}\n")
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        assert "x-request-id" in response.headers, "it came from memory"
        assert client.get(f"/nix-cache/{path}", method="HEAD").status == 404


def test_the_mount_itself(client: Client) -> None:
    assert client.get("/nix-cache").status == 404
    assert client.get("/nix-cachet").body.startswith(b"{")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{BROKEN}.narinfo", 500),
        (f"{BROKEN}.ls", 500),
        (f"nar/{BROKEN}.nar", 500),
        (f"log/{BROKEN}-x.drv", 503),
    ],
)
def test_a_failure_tells_no_secrets(client: Client, path: str, status: int) -> None:
    response = client.get(f"/nix-cache/{path}")
    assert response.status == status
    request_id = response.headers["x-request-id"]
    assert response.body.decode() == f"the server failed; its log says why under request {request_id}\n"
    assert response.headers["cache-control"] == "no-store"


def test_when_those_behind_are_down(client: Client) -> None:
    response = client.get(f"/nix-cache/{DOWN}.narinfo")
    assert (response.status, response.headers["retry-after"]) == (503, "10")
    assert SECRET not in response.body.decode()
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", [f"{HASH}.narinfo", f"nar/{SMALL_NAR}", "nix-cache-info", "x/y/z"])
def test_nobody_writes_here(client: Client, cache: InMemory, method: str, path: str) -> None:
    response = client.get(f"/nix-cache/{path}", "Content-Length: 0", method=method)
    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")
    assert response.body.startswith(b"this binary cache is read-only")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert cache.asked == []


@pytest.mark.parametrize("asked", [DRV, DRV.replace("?", "%3F").replace("+", "%2B").replace("=", "%3d")])
def test_names_of_derivations(client: Client, cache: InMemory, asked: str) -> None:
    response = client.get(f"/nix-cache/log/{asked}")
    assert (response.status, response.body) == (200, LOG)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert cache.asked == [f"log/{DRV}"]


HOSTILE = [
    "..",
    "%2e%2e",
    "../..",
    "%2e%2e/%2e%2e/etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%252e%252e%252f",
    "%00",
    f"{HASH}%00",
    f"{HASH}%0a",
    f"{HASH}\\..",
    f"{HASH}%2f..%2f{HASH}",
    f"{HASH}-%00.drv",
    f"{HASH}-x%2fy.drv",
    f"{HASH}-..%2f..%2fx.drv",
    f"{HASH}-%c3%a9.drv",
    f"{HASH}-%ff.drv",
    f"{HASH}-%.drv",
    f"{HASH}-{'x' * 208}.drv",
    f"{HASH}-x",
    "x" * 7000,
    "%41" * 2000,
    HASH.upper().replace("0", "A"),
    "e" * 32,  # not in the alphabet
    "0" * 31,
    "0" * 33,
    f"{HASH}.narinfo",
    "e" * 52 + ".nar.exe",
    "E" * 52 + ".nar",
    f"{'a' * 52}.nar.",
    f"{'a' * 52}.nar.xz.xz",
    f"{'a' * 52}.nar%0a",
    f"{'a' * 129}.nar",
    "a.nar",
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:30])
@pytest.mark.parametrize(
    "pattern", ["{}", "{}.narinfo", "{}.ls", "nar/{}", "log/{}", "nar/{}.nar", "log/x/{}"]
)
def test_names_that_cannot_be(client: Client, cache: InMemory, pattern: str, name: str) -> None:
    if (pattern, name) in {("{}", f"{HASH}.narinfo"), ("nar/{}.nar", HASH), ("nar/{}.nar", "e" * 32)}:
        return  # these can be
    if pattern == "nar/{}.nar" and name in {"0" * 33}:
        return
    response = client.get(f"/nix-cache/{pattern.format(name)}")
    assert response.status == 404
    assert cache.asked == []
    if response.headers["content-type"].startswith("text/plain"):
        assert response.body.count(b"\n") == 1
        assert len(response.body) < 200


TARGET = st.binary(max_size=80).map(lambda raw: bytes(byte for byte in raw if byte > 32 and byte != 127))


@given(
    st.sampled_from(["", "nar/", "log/"]), TARGET, st.sampled_from(["", ".narinfo", ".ls", ".nar", ".drv"])
)
@example("log/", b"%2e%2e", ".drv")
@example("log/", f"{HASH}-..%2f".encode(), ".drv")
def test_any_bytes(fuzzed: tuple[Server, InMemory], kind: str, name: bytes, ending: str) -> None:
    server, cache = fuzzed
    cache.asked.clear()
    with server.connect() as client:
        head = f"GET /nix-cache/{kind}".encode() + name + f"{ending} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        client.send(head)
        assert client.receive().status in {400, 404}
    for asked in cache.asked:  # well formed by chance
        assert ".." not in asked.split("/")
        assert set(asked) <= set(ALPHABET + "eotu" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "+-._?=/")


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[tuple[Server, InMemory]]:
    cache = InMemory()
    with serving_cache(cache) as running:
        yield running, cache


def test_expected_misses_are_not_in_the_log(client: Client) -> None:
    with capture_logs() as logged:
        client.get(f"/nix-cache/{'3' * 32}.narinfo")
        client.get(f"/nix-cache/{BROKEN}.narinfo")
        client.get("/nothing")
    broken = ("error", "request-failed", f"/nix-cache/{BROKEN}.narinfo")
    assert [(entry["log_level"], entry["event"], entry["path"]) for entry in logged] == [
        broken,
        ("info", "request", broken[2]),
        ("info", "request", "/nothing"),
    ]


@pytest.mark.parametrize("loop_name", LOOPS)
def test_both_event_loops(cache: InMemory, loop_name: str) -> None:
    with serving_cache(cache, loop_name) as server, server.connect() as client:
        assert client.get(f"/nix-cache/{HASH}.narinfo").body == NARINFO
        assert client.get(f"/nix-cache/nar/{LARGE_NAR}").body == LARGE
        assert client.get("/").body.decode() == FRONT_PAGE.format("http", "test")
