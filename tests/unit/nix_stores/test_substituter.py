import asyncio
import contextlib
import gzip
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog
from aiohttp import web

from nixery_snap.errors import (
    BadSignature,
    CorruptPath,
    SubstituterError,
    SubstituterUnreachable,
)
from nixery_snap.nix.content_address import ContentAddress, store_path
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores import circuit_breaker
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from tests.support.waiting import until
from tests.unit.nix_stores.caches import (
    KEY,
    OTHER_KEY,
    CachedPath,
    Fault,
    asking,
    begun,
    body,
    cached,
    failing,
    gated,
    give_time,
    hang_up,
    redirect_loop,
    reset,
    serving,
    slow_headers,
    status,
)

HELLO = cached("hello", references=[cached("glibc").path])
ABSENT = StorePath("0" * 32, "absent")
OTHER = bytes(cached("other", {b"": b"x"}).narinfo).decode()


def records() -> StoredRecords:
    return StoredRecords(ObjectStore("memory://"), 1 << 20)


def content_addressed(content: bytes, **options: object) -> CachedPath:
    """A file by the hash of its NAR, signed by nobody."""
    plain = cached("file", {b"": content}, key=None)
    address = f"fixed:r:{plain.info.nar_hash}"
    path = store_path("file", ContentAddress.parse(address), (), False)
    return cached("file", {b"": content}, key=None, path=path, content_address=address)


async def test_what_a_cache_has() -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        found = await substituter.narinfo(HELLO.path)
        assert found is not None
        assert found.info == replace(HELLO.info, origin=cache.url)
        assert found.url == HELLO.narinfo.url
        assert await substituter.narinfo_by_hash(HELLO.path.hash_part) == found
        assert await substituter.narinfo(ABSENT) is None
        assert await substituter.narinfo_by_hash("../../etc/passwd") is None
        assert await substituter.listing(HELLO.info) == HELLO.tree
        assert await substituter.listing(cached("glibc").info) is None
        assert await substituter.priority() == 40
        async with substituter.stream_nar(found) as chunks:
            assert b"".join(await asyncio.to_thread(list, chunks)) == HELLO.packed


async def test_results_are_remembered() -> None:
    kept = records()
    async with serving(HELLO) as cache:
        for _ in range(2):  # of the same process, and of the next
            async with asking(cache.url, kept) as substituter:
                for _ in range(2):
                    assert await substituter.narinfo(HELLO.path)
                    assert await substituter.narinfo(ABSENT) is None
        assert cache.asked[HELLO.narinfo_name] == 1
        assert cache.asked[f"{ABSENT.hash_part}.narinfo"] == 2
        async with asking(cache.url, kept, keys=[OTHER_KEY]) as substituter:
            with pytest.raises(BadSignature):
                await substituter.narinfo(HELLO.path)
        async with asking(cache.url, records(), negative_ttl=0) as substituter:
            assert await substituter.narinfo(HELLO.path)
            assert await substituter.narinfo(ABSENT) is None
            cache.add(late := cached("late"))
            assert await substituter.narinfo(late.path)
            cache.files.clear()
            assert await substituter.narinfo(late.path)


class Noting(StoredRecords):
    """`keys` are those of what was written."""

    def __init__(self) -> None:
        super().__init__(ObjectStore("memory://"), 1 << 20)
        self.keys: list[str] = []

    async def put(self, kind: str, key: str, value: Any) -> Any:
        self.keys.append(key)
        return await super().put(kind, key, value)


@pytest.mark.parametrize("value", [[5], "text", {"x": 1}, {"narinfo": 5}, {"narinfo": OTHER}], ids=range(5))
async def test_records_that_are_damaged_are_none(value: Any) -> None:
    """Nor is anybody left waiting for an answer."""
    noting = Noting()
    async with serving(HELLO) as cache:
        async with asking(cache.url, noting) as substituter:
            await substituter.narinfo(HELLO.path)
        [key] = noting.keys
        damaged = records()
        await damaged.put("narinfo", key, value)
        async with asking(cache.url, damaged) as substituter, asyncio.timeout(60):
            found = await substituter.narinfo_by_hash(HELLO.path.hash_part)
        assert found is not None
        assert found.info.path == HELLO.path


async def test_absence_is_remembered_for_a_while() -> None:
    async with serving() as cache, asking(cache.url, negative_ttl=600) as substituter:
        assert await substituter.narinfo(HELLO.path) is None
        cache.add(HELLO)
        substituter._narinfos._absent.expire(time.monotonic() + 1)
        assert await substituter.narinfo(HELLO.path) is None
        substituter._narinfos._absent.expire(time.monotonic() + 600)
        assert await substituter.narinfo(HELLO.path) is not None


async def test_equal_questions_are_one() -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        impatient = asyncio.ensure_future(substituter.narinfo(HELLO.path))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(substituter.narinfo(HELLO.path)) for _ in range(20)]
        await asyncio.sleep(0)
        impatient.cancel()
        assert all(found is not None for found in await asyncio.gather(*others))
        assert cache.asked[HELLO.narinfo_name] == 1


async def test_connections_are_kept_and_requests_bounded() -> None:
    paths = [cached(f"package-{number}", {b"": b"x"}) for number in range(40)]
    async with serving(*paths) as cache, asking(cache.url, concurrency=4) as substituter:
        assert all(await asyncio.gather(*(substituter.narinfo(path.path) for path in paths)))
        assert len(cache.connections) <= 4


# --- what must not be believed ----------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], bytes], type[SubstituterError], str]] = {
    "unsigned": (lambda: bytes(cached("hello", key=None).narinfo), BadSignature, "not signed"),
    "another key of that name": (
        lambda: bytes(cached("hello", key=OTHER_KEY).narinfo),
        BadSignature,
        "test-1",
    ),
    "changed after signing": (
        lambda: bytes(HELLO.narinfo).replace(b"NarSize: ", b"NarSize: 1"),
        BadSignature,
        "test-1",
    ),
    "for another path": (lambda: bytes(cached("other").narinfo), CorruptPath, "is for /nix/store/"),
    "of another store": (
        lambda: bytes(HELLO.narinfo).replace(b"/nix/store", b"/gnu/store"),
        CorruptPath,
        "child of /nix/store",
    ),
    "nonsense": (lambda: b"<html>Log in first</html>\n", CorruptPath, "narinfo"),
    "nothing": (lambda: b"", CorruptPath, "narinfo"),
    "cut short": (lambda: bytes(HELLO.narinfo)[:100], CorruptPath, "narinfo"),
    "10 MB": (lambda: bytes(HELLO.narinfo) + b"Comment: x\n" * 1_000_000, CorruptPath, "larger than"),
    "a URL elsewhere": (
        lambda: bytes(HELLO.narinfo).replace(b"URL: nar/", b"URL: http://elsewhere/"),
        CorruptPath,
        "URL",
    ),
    "an address of something else": (
        lambda: bytes(replace(HELLO.narinfo, info=replace(content_addressed(b"x").info, path=HELLO.path))),
        BadSignature,
        "not signed",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_refused(what: str) -> None:
    content, kind, reason = REFUSED[what]
    kept = records()
    async with serving(HELLO) as cache:
        cache.files[HELLO.narinfo_name] = content()
        async with asking(cache.url, kept) as substituter:
            with structlog.testing.capture_logs() as logs:
                for _ in range(3):
                    with pytest.raises(kind, match=reason) as caught:
                        await substituter.narinfo(HELLO.path)
            assert cache.url in str(caught.value)
            assert [entry["event"] for entry in logs] == ["path-info-refused"]
            assert logs[0]["cache"] == cache.url
            assert HELLO.path.hash_part in logs[0]["path"]
            assert substituter.counts["refused"] == 1
            assert cache.asked[HELLO.narinfo_name] == 1
        # Nothing wrong was recorded: a good answer is taken later.
        cache.add(HELLO)
        async with asking(cache.url, kept) as substituter:
            assert await substituter.narinfo(HELLO.path)


async def test_another_path_with_that_hash() -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        with pytest.raises(CorruptPath, match="is for"):
            await substituter.narinfo(HELLO.path._replace(name="other"))


async def test_content_addresses_need_no_signature() -> None:
    file = content_addressed(b"by itself")
    async with serving(file) as cache, asking(cache.url, keys=[]) as substituter:
        assert await substituter.narinfo(file.path)


async def test_an_address_that_cannot_be_checked_while_reading_needs_a_signature() -> None:
    address = f"fixed:r:{HELLO.info.nar_hash}"
    path = store_path("self", ContentAddress.parse(address), (), True)
    unsigned = cached("self", references=[path], key=None, path=path, content_address=address)
    signed = cached("self", references=[path], path=path, content_address=address)
    async with serving(unsigned) as cache, asking(cache.url, negative_ttl=0) as substituter:
        for _ in range(2):
            with pytest.raises(BadSignature):
                await substituter.narinfo(path)
        assert cache.asked[unsigned.narinfo_name] == 1, "a refusal lasts for a while in any case"
    async with serving(signed) as cache, asking(cache.url) as substituter:
        assert await substituter.narinfo(path)


async def test_refusing_afterwards() -> None:
    async with serving(HELLO) as cache, asking(cache.url, negative_ttl=600) as substituter:
        assert await substituter.narinfo(HELLO.path)
        error = CorruptPath(cache.url, str(HELLO.path), "its NAR is bad")
        substituter.refuse(HELLO.path, error)
        with pytest.raises(CorruptPath, match="its NAR is bad"):
            await substituter.narinfo(HELLO.path)
        substituter._narinfos._refused.expire(time.monotonic() + 600)
        assert await substituter.narinfo(HELLO.path)


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        (b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n", 7),
        (b"StoreDir: /nix/store\n", 50),
        (b"Priority: -1\n", 50),
        (b"", 50),
        (None, 50),
    ],
)
async def test_priorities(text: bytes | None, priority: int) -> None:
    async with serving() as cache, asking(cache.url) as substituter:
        if text is None:
            del cache.files["nix-cache-info"]
        else:
            cache.files["nix-cache-info"] = text
        assert await substituter.priority() == priority
        assert await substituter.priority() == priority
        assert cache.asked["nix-cache-info"] == 1
        async with asking(cache.url, priority=3) as told:
            assert await told.priority() == 3


async def test_caches_of_another_store() -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        cache.files["nix-cache-info"] = b"StoreDir: /gnu/store\n"
        for _ in range(2):
            with pytest.raises(SubstituterError, match="/gnu/store"):
                await substituter.priority()
            with pytest.raises(SubstituterError, match="/gnu/store"):
                await substituter.narinfo(HELLO.path)
        assert cache.asked == {"nix-cache-info": 1}


# --- what does not answer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [status(500), status(503), status(429), status(429, Retry_After="0"), reset]
)
async def test_passing_failures(fault: Fault) -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        cache.faults[HELLO.narinfo_name] = failing(2, fault, bytes(HELLO.narinfo))
        assert await substituter.narinfo(HELLO.path)
        # A connection that ends when it is used again is tried again by aiohttp itself.
        assert cache.asked[HELLO.narinfo_name] == 3


async def test_retry_after_is_honoured_when_short() -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        cache.faults[HELLO.narinfo_name] = failing(1, status(429, Retry_After="1"), bytes(HELLO.narinfo))
        begin = time.monotonic()
        assert await substituter.narinfo(HELLO.path)
        assert 1 <= time.monotonic() - begin < 30
        cache.faults["*"] = status(429, Retry_After="3600")
        with pytest.raises(SubstituterUnreachable, match="429"):
            await substituter.narinfo(cached("glibc").path)
        assert time.monotonic() - begin < 60


LASTING: dict[str, tuple[Fault, str, int]] = {
    "500": (status(500), "500", 3),
    "401": (status(401), "401", 1),
    "teapot": (status(418), "418", 1),
    "slow headers": (slow_headers, "in time", 1),
    "slow body": (begun(b"StorePath", 500, slow_headers), "in time", 1),
    "reset": (reset, "onnect", 3),
    "reset in the body": (begun(b"StorePath", 500, reset), ".", 3),
    "hung up in the body": (begun(b"StorePath", 500, hang_up), "not completed", 3),
    "redirect loop": (redirect_loop, "redirects", 1),
    "redirect to a file": (status(302, Location="file:///etc/passwd"), "redirects", 1),
}


@pytest.mark.parametrize("what", LASTING)
async def test_lasting_failures(what: str) -> None:
    fault, reason, tries = LASTING[what]
    seconds = 0.5 if reason == "in time" else 60
    async with serving(HELLO) as cache, asking(cache.url, request_timeout=seconds) as substituter:
        cache.faults["*"] = fault
        begin = time.monotonic()
        with pytest.raises(SubstituterUnreachable, match=reason):
            await substituter.narinfo(HELLO.path)
        assert time.monotonic() - begin < 30
        assert substituter.counts["failures"] == tries
        # Not remembered as absent or refused.
        cache.faults.clear()
        give_time(substituter)
        assert await substituter.narinfo(HELLO.path)


@pytest.mark.parametrize("code", [403, 404, 410])
async def test_absence(code: int) -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        cache.faults["*"] = status(code)
        assert await substituter.narinfo(HELLO.path) is None


async def test_a_dead_one_is_left_alone(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    paths = [cached(f"package-{number}", {b"": b"x"}).path for number in range(300)]
    async with asking(f"http://127.0.0.1:{closed_port}") as substituter:
        with structlog.testing.capture_logs() as logs:
            answers = await asyncio.gather(*map(substituter.narinfo, paths), return_exceptions=True)
        assert all(isinstance(answer, SubstituterUnreachable) for answer in answers)
        # Three tries of the first 32, and of those that got a turn before three of them had failed.
        assert substituter.counts["requests"] <= 3 * (32 + 2)
        [entry] = logs
        assert (entry["event"], entry["url"], entry["seconds"]) == (
            "substituter-unreachable",
            substituter.url,
            30,
        )
        asked = substituter.counts["requests"]
        with pytest.raises(SubstituterUnreachable, match="left alone"):
            await substituter.narinfo(HELLO.path)
        assert substituter.counts["requests"] == asked
        # Later it gets a chance.
        now = time.monotonic
        monkeypatch.setattr(
            substituter._questions._breaker, "_now", lambda: now() + circuit_breaker.OPEN_SECONDS
        )
        with pytest.raises(SubstituterUnreachable):
            await substituter.narinfo(HELLO.path)
        assert substituter.counts["requests"] == asked + 3


async def test_a_cache_that_is_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [cached(f"package-{number}", {b"": b"x"}) for number in range(6)]
    async with serving(*paths) as cache, asking(cache.url, request_timeout=0.3) as substituter:
        cache.faults["*"] = slow_headers
        for path in paths[:3]:
            with pytest.raises(SubstituterUnreachable, match="in time"):
                await substituter.narinfo(path.path)
        now = time.monotonic
        monkeypatch.setattr(
            substituter._questions._breaker, "_now", lambda: now() + circuit_breaker.OPEN_SECONDS
        )
        before = substituter.counts["requests"]
        answers = await asyncio.gather(
            *(substituter.narinfo(path.path) for path in paths), return_exceptions=True
        )
        assert all(isinstance(answer, SubstituterUnreachable) for answer in answers)
        assert substituter.counts["requests"] == before + 1, "one trial at a time"
        cache.faults.clear()
        give_time(substituter)
        later = now() + 3 * circuit_breaker.OPEN_SECONDS
        monkeypatch.setattr(substituter._questions._breaker, "_now", lambda: later)
        assert await substituter.narinfo(paths[0].path)
        assert all(await asyncio.gather(*(substituter.narinfo(path.path) for path in paths)))


async def test_no_more_requests_at_a_time_than_it_may() -> None:
    paths = [cached(f"package-{number}", {b"": b"x"}) for number in range(40)]
    under_way = most = 0
    as_many_as_may = asyncio.Event()
    async with serving(*paths) as cache, asking(cache.url, concurrency=5) as substituter:

        async def slow(request: web.Request) -> web.StreamResponse:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            if under_way == 5:
                as_many_as_may.set()
            with contextlib.suppress(
                TimeoutError
            ):  # the first ones may keep the turns of others as long as they last
                await asyncio.wait_for(as_many_as_may.wait(), 1)
            await asyncio.sleep(0.02)
            under_way -= 1
            return web.Response(body=cache.files[request.path[1:]])

        cache.faults["*"] = slow
        parts = [[path.path for path in paths[begin : begin + 12]] for begin in range(0, 40, 12)]
        found = await asyncio.gather(*map(substituter.narinfos, parts))
        assert sum(map(len, found)) == 40
        assert most == 5
        assert set(cache.asked.values()) == {1}


async def test_some_of_many_go_wrong() -> None:
    """Each as it would by itself, and none of them is asked for more often than that."""
    paths = [cached(f"package-{number}", {b"": b"x"}) for number in range(40)]
    names = [path.narinfo_name for path in paths]
    async with serving(*paths[:-1]) as cache, asking(cache.url) as substituter:
        again, broken, refused, encoded = (
            iter([status(503)]),
            status(500),
            status(400),
            status(302, Location="/x"),
        )

        async def at_first(request: web.Request) -> web.StreamResponse:
            fault = next(again, None)
            return await fault(request) if fault else web.Response(body=cache.files[names[0]])

        cache.faults |= {names[0]: at_first, names[1]: broken, names[2]: refused, names[3]: encoded}
        cache.faults[names[4]] = body(b"StorePath: nonsense\n")
        cache.faults[names[5]] = body(gzip.compress(cache.files[names[5]]), Content_Encoding="gzip")
        cache.faults[names[6]] = body(cache.files[names[7]])
        found = await substituter.narinfos([path.path for path in paths])
        right = {path.path for path in paths} - {paths[number].path for number in (1, 2, 3, 4, 6, 39)}
        assert {path for path, said in found.items() if isinstance(said, NarInfo)} == right
        said = [found[paths[number].path] for number in (1, 2, 4, 6)]
        kinds = [SubstituterUnreachable, SubstituterUnreachable, CorruptPath, CorruptPath]
        assert [type(one) for one in said] == kinds
        assert [cache.asked[names[number]] for number in (0, 1, 2, 4, 6, 8, 39)] == [2, 3, 1, 1, 1, 1, 1]


async def test_a_cache_that_fails_is_not_asked_for_all() -> None:
    paths = [cached(f"package-{number}", {b"": b"x"}).path for number in range(200)]
    async with serving() as cache, asking(cache.url, concurrency=4) as substituter:
        cache.faults["*"] = status(503)
        found = await substituter.narinfos(paths)
        assert len(found) == 200
        assert all(isinstance(said, SubstituterUnreachable) for said in found.values())
        assert cache.asked.total() < 30  # three tries of those four, and some that saw too late that it fails


async def test_two_of_one_path_are_checked_apart() -> None:
    """As when the first came before a fault of ours, and the path was asked for again."""
    forged = replace(HELLO.narinfo, info=replace(HELLO.info, nar_size=1))
    async with asking("http://127.0.0.1:1") as substituter:
        narinfos = substituter._narinfos
        for batch in ([HELLO.narinfo, forged], [forged, HELLO.narinfo]):
            await narinfos._check([(HELLO.path.hash_part, one) for one in batch])
            assert narinfos._found[HELLO.path.hash_part] == HELLO.narinfo
        assert substituter.counts["refused"] == 2


async def test_a_slow_one_of_many_keeps_no_turns_of_others() -> None:
    paths = [cached(f"package-{number}", {b"": b"x"}) for number in range(20)]
    go = asyncio.Event()
    async with serving(*paths) as cache, asking(cache.url, concurrency=5) as substituter:
        cache.faults[paths[0].narinfo_name] = gated(go, status(400))
        several = asyncio.ensure_future(substituter.narinfos([path.path for path in paths[:15]]))
        await until(lambda: len(cache.asked) == 15)
        assert len(await substituter.narinfos([path.path for path in paths[15:]])) == 5
        assert not several.done()
        go.set()
        assert len(await several) == 15


async def test_slow_ones_hold_no_more_than_their_share() -> None:
    paths = [cached(f"package-{number}", {b"": b"x"}).path for number in range(50)]
    async with serving() as cache, asking(cache.url, concurrency=5, request_timeout=0.4) as substituter:
        cache.faults["*"] = slow_headers
        answers = await asyncio.gather(*map(substituter.narinfo, paths), return_exceptions=True)
        assert all(isinstance(answer, SubstituterUnreachable) for answer in answers)
        # Two may have got the turns of the first two that failed; the others saw the breaker open.
        assert 3 <= substituter.counts["requests"] <= 7


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "version"),
        (gzip.compress(b"{" + bytes(100_000_000)), "larger than"),
        (
            b'{"version":1,"root":{"type":"directory","entries":{"..":{"type":"directory","entries":{}}}}}',
            "name",
        ),
        (b"x" * 40_000_000, "larger than"),
    ],
)
async def test_bad_listings(content: bytes, reason: str) -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        cache.files[HELLO.listing_name] = content
        with pytest.raises(CorruptPath, match=reason):
            await substituter.listing(HELLO.info)


async def test_compressed_listings_and_narinfos() -> None:
    async with serving(HELLO) as cache, asking(cache.url) as substituter:
        for name in (HELLO.narinfo_name, HELLO.listing_name):
            cache.faults[name] = body(gzip.compress(cache.files[name]), Content_Encoding="gzip")
        assert await substituter.narinfo(HELLO.path)
        assert await substituter.listing(HELLO.info) == HELLO.tree
        cache.faults[HELLO.listing_name] = body(gzip.compress(HELLO.listing))
        assert await substituter.listing(HELLO.info) == HELLO.tree


async def streamed(cache_url: str, narinfo: NarInfo, **options: float) -> bytes:
    async with (
        asking(cache_url, request_timeout=options.get("request_timeout", 60)) as substituter,
        substituter.stream_nar(narinfo) as chunks,
    ):
        return b"".join(await asyncio.to_thread(list, chunks))


async def test_nars_that_are_not_there_or_break_off() -> None:
    name = HELLO.narinfo.url
    async with serving(HELLO) as cache:
        cache.faults[name] = failing(2, status(503), HELLO.packed)
        assert await streamed(cache.url, HELLO.narinfo) == HELLO.packed
        cache.faults[name] = status(404)
        with pytest.raises(CorruptPath, match="there is no nar/"):
            await streamed(cache.url, HELLO.narinfo)
        for fault in (reset, hang_up):
            cache.faults[name] = begun(HELLO.packed[:100], len(HELLO.packed), fault)
            with pytest.raises(SubstituterUnreachable):
                await streamed(cache.url, HELLO.narinfo)
        cache.faults[name] = begun(HELLO.packed[:100], len(HELLO.packed), slow_headers)
        with pytest.raises(SubstituterUnreachable, match="in time"):
            await streamed(cache.url, HELLO.narinfo, request_timeout=0.3)
        cache.faults[name] = body(b"x", Content_Encoding="gzip")
        with pytest.raises(SubstituterUnreachable, match="encoded"):
            await streamed(cache.url, HELLO.narinfo)


async def test_a_stream_waits_for_its_reader_and_ends_with_it() -> None:
    large = cached("large", {b"": bytes(range(256)) * 400_000}, compression="none")
    async with serving(large) as cache, asking(cache.url) as substituter:
        async with substituter.stream_nar(large.narinfo) as chunks:
            first = await asyncio.to_thread(next, chunks)
            assert large.packed.startswith(first)
            await asyncio.sleep(0.2)
            held = chunks.gi_frame.f_locals["self"]  # type: ignore[attr-defined] # a generator of Pipe
            assert held._size_bytes < 3_000_000
            reader = asyncio.ensure_future(asyncio.to_thread(lambda: sum(map(len, chunks))))
            await asyncio.sleep(0)
        # Left while the reader was at it: it learns that.
        with pytest.raises(SubstituterUnreachable, match="given up"):
            await reader
        assert KEY.public_key.name == "test-1"
