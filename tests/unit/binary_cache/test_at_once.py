"""Narinfos answered before aiohttp sees the request: the same answers, from the same files, and nothing else."""

import os
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nixery_snap.binary_cache.at_once import narinfos_at_once
from nixery_snap.nix.signing import SecretKey
from nixery_snap.nix_stores.build_logs import BuildLogs
from nixery_snap.nix_stores.local_store import StoreFiles
from nixery_snap.nix_stores.own_cache import OwnCache
from nixery_snap.object_store.cache_files import StoredCacheFiles
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import BinaryCache
from tests.unit.binary_cache.caches import serving_cache
from tests.unit.web.servers import LOOPS, Client, Response, request

HASH, LATE, ODD = "0" * 32, "1" * 32, "2" * 32
NARINFO = f"StorePath: /nix/store/{HASH}-hello\nURL: nar/x\n".encode()
URL = f"/nix-cache/{HASH}.narinfo"
# As curl, and so Nix, puts it.
HEADERS = ("User-Agent: curl/7.82.0 Nix/2.8.1", "Accept: */*", "Accept-Encoding: deflate, gzip, br, zstd")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "storage"
    root.mkdir()
    (root / f"{HASH}.narinfo").write_bytes(NARINFO)
    return root


def own_cache(root: Path) -> OwnCache:
    files = StoredCacheFiles(ObjectStore(root.as_uri()))
    return OwnCache(files, SecretKey.generate("test-1"), StoreFiles(root), BuildLogs(root), ())


@pytest.fixture(params=LOOPS)
def client(request: pytest.FixtureRequest, root: Path) -> Iterator[Client]:
    with serving_cache(own_cache(root), request.param) as server, server.connect() as connected:
        yield connected


class OnlyThere:
    """A cache of which nothing is known at once."""

    def __init__(self, cache: BinaryCache) -> None:
        self.narinfo, self.file = cache.narinfo, cache.file

    def narinfo_at_once(self, hash_part: str) -> bytes | None:
        return None


def is_made_at_once(response: Response) -> bool:
    return "x-request-id" not in response.headers


def stable(response: Response) -> tuple[int, dict[str, str], bytes]:
    kept = {name: value for name, value in response.headers.items() if name not in {"date", "x-request-id"}}
    return response.status, kept, response.body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "headers", [(), HEADERS, ("ACCEPT: a/b", "accept: ", "Connection: keep-alive", "user-agent: x y ")]
)
def test_it_is_the_application_s_answer(client: Client, method: str, headers: tuple[str, ...]) -> None:
    short = client.get(URL, *headers, method=method)
    long = client.get(URL, *headers, "X-Other: 1", method=method)
    assert is_made_at_once(short)
    assert not is_made_at_once(long)
    assert stable(short) == stable(long)
    assert short.status == 200
    assert short.body == (NARINFO if method == "GET" else b"")
    assert stable(client.get(URL, *headers, method=method)) == stable(short)
    assert client.rest == b""


def test_conditions_and_ranges(client: Client) -> None:
    etag = client.get(URL).headers["etag"]
    assert client.get(URL, f"If-None-Match: {etag}").status == 304
    assert client.get(URL, "If-None-Match: *").status == 304
    part = client.get(URL, "Range: bytes=0-3")
    assert (part.status, part.body) == (206, NARINFO[:4])
    assert client.get(URL, "Range: bytes=9999-").status == 416
    assert client.get(URL, "Range: bytes=0-3", 'If-Range: "other"').body == NARINFO


PLAIN = request(URL)


@pytest.mark.parametrize(
    "head",
    [
        request(URL, "Authorization: Basic eDp5"),
        request(URL, "Cookie: a=b"),
        request(URL, "Host: test"),
        request(URL, "User-Agent: a", "User-Agent: a"),
        request(URL).replace(b"Host: test\r\n", b""),
        request(URL).replace(b"Host: test", b"Host: "),
        request(URL, "Connection: close"),
        request(URL, "Connection: keep-alive, Upgrade"),
        request(URL, "Upgrade: h2c"),
        request(URL, "Content-Length: 0"),
        request(URL, "Transfer-Encoding: chunked"),
        request(URL, "Expect: 100-continue"),
        request(URL, "Accept: a\tb"),
        request(URL, "Accept: \xe9"),
        request(URL, "Accept: a\rIf-None-Match: *"),
        request(URL, "Accept: a\nIf-None-Match: *"),
        request(URL, "Accept : a"),
        request(URL, "Accept: a", " folded"),
        request(URL, "X-Accept: a"),
        request(URL, method="POST"),
        request(URL, method="get"),
        request(URL, version="HTTP/1.0"),
        request(URL, version="HTTP/1.1 "),
        request(f"{URL}?x"),
        request(f"{URL}#x"),
        request(f"http://test{URL}"),
        request(f"/{URL}"),
        request(f"/nix-cache/{HASH}%2enarinfo"),
        request(f"/nix-cache/../{HASH}.narinfo"),
        request(f"/nix-cache/x/../{HASH}.narinfo"),
        request(f"/nix-cache/{HASH}xnarinfo"),
        request(f"/nix-cache/{HASH[:-1]}.narinfo"),
        request(f"/nix-cache/{HASH}0.narinfo"),
        request(f"/nix-cache/{'e' * 32}.narinfo"),
        request(f"/nix-cache/{HASH[:-1]}\0.narinfo"),
        request(f"/nix-cache/{HASH}.ls"),
        request("/nix-cache/nix-cache-info"),
        request(f"/nix-cachex/{HASH}.narinfo"),
        PLAIN[:-1],
        PLAIN + PLAIN,
        PLAIN + b"x",
        b"\r\n" + PLAIN,
        b"",
    ],
)
def test_everything_else_is_the_application_s(root: Path, head: bytes) -> None:
    answer = narinfos_at_once(own_cache(root), "/nix-cache")
    assert answer(PLAIN) is not None
    assert answer(head) is None


def same_as_without(short: Client, long: Client, head: bytes) -> None:
    answers = []
    for client in (short, long):
        client.send(head)
        answers.append(client.receive("HEAD" if head.startswith(b"HEAD") else "GET"))
        assert client.rest == b""
    assert stable(answers[0]) == stable(answers[1])


def test_whatever_is_answered_at_once_aiohttp_would_answer_so(root: Path) -> None:
    cache = own_cache(root)
    answer = narinfos_at_once(cache, "/nix-cache")
    lines = st.builds(
        "{}: {}".format,
        st.sampled_from(
            ["Host", "host", "User-Agent", "Accept", "accept-encoding", "Connection", "X", "If-None-Match"]
        ),
        st.sampled_from(["*/*", "keep-alive", "close", "x", "", "*"])
        | st.text(string.printable[:-2], max_size=9),
    )

    @given(st.sampled_from(["GET", "HEAD"]), st.lists(lines, max_size=5))
    @example("GET", ["Host: a b"])
    @example("GET", ["Host: [::1"])
    @example("GET", ["Host: a:99999999"])
    @example("GET", ["Host: \x7f"])
    @example("GET", ["Host: x", "Connection: keep-alive", "Connection: keep-alive"])
    def ask(method: str, headers: list[str]) -> None:
        head = "\r\n".join([f"{method} {URL} HTTP/1.1", *headers, "", ""]).encode()
        if answer(head) is not None:
            with short.connect() as one, long.connect() as other:
                same_as_without(one, other, head)

    with serving_cache(cache) as short, serving_cache(OnlyThere(cache)) as long:
        ask()


def test_what_is_published_later_is_found(client: Client, root: Path) -> None:
    url = f"/nix-cache/{LATE}.narinfo"
    assert client.get(url).status == 404
    (root / f"{LATE}.narinfo").write_bytes(NARINFO)
    found = client.get(url)
    assert is_made_at_once(found)
    assert found.body == NARINFO


def test_what_is_no_small_file_is_left_to_the_application(client: Client, root: Path, tmp_path: Path) -> None:
    files, file = StoredCacheFiles(ObjectStore(root.as_uri())), root / f"{ODD}.narinfo"
    (tmp_path / "secret").write_text("x")
    for make in (
        lambda: file.symlink_to(tmp_path / "secret"),
        lambda: os.mkfifo(file),
        file.mkdir,
        lambda: file.write_bytes(b"x" * 100_000),
    ):
        make()
        assert files.get_at_once(file.name) is None
        file.rmdir() if file.is_dir() else file.unlink()
    assert files.get_at_once(file.name) is None
    # An empty one is what a machine that lost its power leaves.
    file.touch()
    assert own_cache(root).narinfo_at_once(ODD) is None
    assert client.get(f"/nix-cache/{ODD}.narinfo").status == 404


def test_a_store_without_files_has_nothing_at_once() -> None:
    assert StoredCacheFiles(ObjectStore("memory://")).get_at_once(f"{HASH}.narinfo") is None
