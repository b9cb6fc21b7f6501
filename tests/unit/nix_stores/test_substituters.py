import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from nixery_snap.errors import BadSignature, CorruptPath, SubstituterError, SubstituterUnreachable
from nixery_snap.imaging.locate import find_closure
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.cache_transport import HttpTransport
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from tests.support.waiting import until
from tests.unit.nix_stores.caches import (
    KEY,
    OTHER_KEY,
    CachedPath,
    ScriptedCache,
    asking,
    cached,
    gated,
    serving,
    status,
)

GLIBC = cached("glibc")
HELLO = cached("hello", references=[GLIBC.path])
ABSENT = StorePath("0" * 32, "absent")


async def test_the_first_by_priority_then_as_given() -> None:
    async with (
        serving(HELLO) as late,
        serving(HELLO) as first,
        serving(HELLO) as second,
        asking(late.url, priority=50) as a,
        asking(first.url) as b,
        asking(second.url) as c,
    ):
        substituters = Substituters([a, b, c])
        infos = await substituters.path_infos([HELLO.path, ABSENT])
        assert {path: info.origin for path, info in infos.items()} == {HELLO.path: first.url}
        first.files["nix-cache-info"] = b""  # asked once
        found = await substituters.where(HELLO.path)
        assert found is not None
        assert found.info.origin == first.url
        assert await substituters.where(ABSENT) is None
        assert not substituters.errors_of(HELLO.path)
        assert second.asked[HELLO.narinfo_name] == late.asked[HELLO.narinfo_name] == 0
        assert second.asked[f"{ABSENT.hash_part}.narinfo"] == 1
        assert substituters.get(late.url) is a
        assert substituters.get(late.url + "/") is a
        with pytest.raises(KeyError):
            substituters.get("https://elsewhere.example")


async def test_nothing_to_ask() -> None:
    assert await Substituters([]).path_infos([ABSENT]) == {}
    assert await Substituters([]).where(ABSENT) is None
    async with serving() as cache, asking(cache.url) as one:
        assert await Substituters([one]).path_infos([]) == {}
        assert not cache.asked


async def test_bad_answers_are_passed_over() -> None:
    forged = cached("hello", key=OTHER_KEY)
    async with (
        serving(forged) as bad,
        serving() as failing,
        serving(HELLO) as good,
        asking(bad.url) as a,
        asking(failing.url, priority=40) as b,
        asking(good.url) as c,
    ):
        failing.faults["*"] = status(500)
        substituters = Substituters([a, b, c])
        infos = await substituters.path_infos([HELLO.path])
        assert infos[HELLO.path].origin == good.url
        assert [type(error) for error in substituters.errors_of(HELLO.path)] == [
            BadSignature,
            SubstituterUnreachable,
        ]
        assert [error.url for error in substituters.errors_of(HELLO.path)] == [bad.url, failing.url]
        good.files.clear()
        c.refuse(HELLO.path, CorruptPath(good.url, str(HELLO.path), "no good"))
        assert await substituters.path_infos([HELLO.path]) == {}
        assert len(substituters.errors_of(HELLO.path)) == 3


async def test_who_has_it() -> None:
    async with (
        serving(HELLO) as one,
        serving(GLIBC) as other,
        asking(one.url) as a,
        asking(other.url) as b,
    ):
        substituters = Substituters([a, b])
        assert await substituters.having([HELLO.path], [one.url])
        assert await substituters.having([HELLO.path], [other.url, one.url + "/"])
        assert not await substituters.having([HELLO.path], [other.url])
        assert not await substituters.having([HELLO.path], [])
        other.faults["*"] = status(500)
        assert not await substituters.having([HELLO.path], [other.url])


async def test_who_has_which_of_many() -> None:
    many = [cached(f"package-{number}", {b"": b"x"}) for number in range(300)]
    async with (
        serving(*many[:200]) as one,
        serving(*many[100:], HELLO) as other,
        asking(one.url) as a,
        asking(other.url) as b,
    ):
        substituters = Substituters([a, b])
        paths = [path.path for path in many]
        assert await substituters.having([*paths, ABSENT], [one.url]) == set(paths[:200])
        assert await substituters.having([*paths, ABSENT], [one.url, other.url]) == set(paths)
        infos = await substituters.path_infos([*paths, ABSENT])
        assert [infos[path].origin for path in paths] == [one.url] * 200 + [other.url] * 100
        assert all(other.asked[path.narinfo_name] == 0 for path in many[:200])
        assert {one.asked[path.narinfo_name] for path in many} == {1}


async def test_bad_ones_among_many() -> None:
    many = [
        cached(f"package-{number}", {b"": b"x"}, key=[KEY, OTHER_KEY][number % 2]) for number in range(200)
    ]
    async with serving(*many) as cache, asking(cache.url) as one:
        cache.files[many[0].narinfo_name] = b"nonsense"
        cache.files[many[2].narinfo_name] = bytes(many[4].narinfo)
        cache.faults[many[6].narinfo_name] = status(401)
        substituters = Substituters([one])
        infos = await substituters.path_infos([path.path for path in many])
        good = {path.path for number, path in enumerate(many) if number % 2 == 0 and number not in {0, 2, 6}}
        assert infos.keys() == good
        kinds = [type(error) for path in many[:7] for error in substituters.errors_of(path.path)]
        assert kinds == [
            CorruptPath,
            BadSignature,
            CorruptPath,
            BadSignature,
            BadSignature,
            SubstituterUnreachable,
        ]
        assert one.counts["refused"] == 102
        assert one.counts["found"] == len(good)


@pytest.fixture
async def closure() -> AsyncIterator[tuple[ScriptedCache, list[CachedPath]]]:
    """500 paths, each but the first few referring to some before it, and to itself."""
    paths: list[CachedPath] = []
    for number in range(500):
        before = [
            paths[index].path for index in {number // 3, number - 1, number // 7} if index < number and number
        ]
        own = cached(f"package-{number}", {b"": b"x"}).path
        paths.append(cached(f"package-{number}", {b"": b"x"}, [*before, own]))
    async with serving(*paths) as cache:
        yield cache, paths


async def test_closures_ask_once_for_each_path(closure: tuple[ScriptedCache, list[CachedPath]]) -> None:
    cache, paths = closure
    async with asking(cache.url) as substituter:
        found = await find_closure(Substituters([substituter]), [paths[-1].path])
        assert found.keys() == {path.path for path in paths}
        assert all(cache.asked[path.narinfo_name] == 1 for path in paths)
        assert len(cache.connections) <= 32


async def test_one_that_does_not_answer_slows_nobody_for_long(
    closure: tuple[ScriptedCache, list[CachedPath]],
) -> None:
    cache, paths = closure
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with asking(url, request_timeout=1) as dead, asking(cache.url) as alive:
            found = await find_closure(Substituters([dead, alive]), [paths[-1].path])
            assert len(found) == len(paths)
            # Its priority and its first few narinfos may each take a second.
            assert dead.counts["requests"] <= 4


async def test_slow_ones_take_no_turns_from_others() -> None:
    paths = [cached(f"package-{number}", {b"": b"x"}) for number in range(40)]
    records = StoredRecords(ObjectStore("memory://"), 1 << 20)
    go = asyncio.Event()
    async with serving() as slow, serving(*paths) as good:
        slow.faults["*"] = gated(go, status(400))
        one, other = (
            Substituter(
                cache.url,
                HttpTransport(cache.url, request_timeout=60),
                [KEY.public_key],
                records,
                priority=1,
                concurrency=4,
            )
            for cache in (slow, good)
        )
        waiting = asyncio.gather(*(one.narinfo(path.path) for path in paths), return_exceptions=True)
        await until(lambda: len(slow.asked) == 4)
        assert all(await asyncio.gather(*(other.narinfo(path.path) for path in paths)))
        assert not waiting.done()
        go.set()
        assert all(isinstance(answer, SubstituterError) for answer in await waiting)
        await one.close()
        await other.close()
