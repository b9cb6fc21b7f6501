"""Our own binary cache over a real directory, and over HTTP caches that misbehave as its upstreams."""

import asyncio
import bz2
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from nixery_snap.errors import CorruptPath, StorageError, SubstituterUnreachable
from nixery_snap.nix import base32, listing, nar
from nixery_snap.nix.closure_info import closure_info, closure_info_entries
from nixery_snap.nix.file_tree import Directory
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.signing import SecretKey, verified_by
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.decompression import decompress
from nixery_snap.ports import Location, StoredBytes, StoredFile
from tests.unit.nix_stores.caches import (
    KEY,
    OTHER_KEY,
    CachedPath,
    Fault,
    ScriptedCache,
    asking,
    begun,
    body,
    cached,
    hang_up,
    reset,
    serving,
    slow_headers,
    status,
)
from tests.unit.nix_stores.own import Own
from tests.unit.stores import Run, To, store_path

HELLO = cached("hello")
HASH = HELLO.path.hash_part


def told_url(path: CachedPath) -> str:
    """Of its NAR, as clients are told."""
    return f"nar/{path.path.hash_part}{path.info.nar_hash.removeprefix('sha256:')}.nar.xz"


NAR_URL = told_url(HELLO)


@asynccontextmanager
async def own(directory: Path, *caches: ScriptedCache | str, seconds: float = 60) -> AsyncIterator[Own]:
    """So long is the first of the caches waited for."""
    async with AsyncExitStack() as stack:
        upstreams = [
            await stack.enter_async_context(
                asking(
                    cache if isinstance(cache, str) else cache.url, request_timeout=60 if number else seconds
                )
            )
            for number, cache in enumerate(caches)
        ]
        yield Own(directory, upstreams)


def content_of(location: Location | None) -> bytes:
    if isinstance(location, StoredBytes):
        return location.content
    assert isinstance(location, StoredFile)
    content = location.path.read_bytes()
    assert len(content) == location.size_bytes
    return content


def nar_of(own: Own, hash_part: str) -> bytes:
    narinfo = own.narinfo(hash_part)
    packed = (own.root / narinfo.url).read_bytes()
    digest = base32.encode(hashlib.sha256(packed).digest())
    assert (narinfo.file_hash, narinfo.file_size) == (f"sha256:{digest}", len(packed))
    assert narinfo.url.startswith(f"nar/{digest}.nar")
    return b"".join(decompress(iter([packed]), narinfo.compression))


# --- writing ----------------------------------------------------------------------------------------


async def test_a_local_path(tmp_path: Path) -> None:
    own = Own(tmp_path)
    deriver = store_path("hello.drv")
    logs = own.store.root / "nix/var/log/nix/drvs" / deriver.base_name[:2]
    logs.mkdir(parents=True)
    (logs / f"{deriver.base_name[2:]}.bz2").write_bytes(bz2.compress(b"built"))
    info = own.add("hello", {"bin": {"hello": Run(), "hi": To("hello")}, "empty": b""}, deriver=deriver)
    narinfo = await own.cache.add_local(info)
    assert f"{info.path.hash_part}.narinfo" not in own.names, "it is announced later"
    await own.cache.announce(narinfo)
    published = own.narinfo(info.path.hash_part)
    assert replace(published.info, signatures=()) == info
    assert verified_by(published.info, [own.key.public_key])
    assert nar_of(own, info.path.hash_part) == b"".join(nar.write(own.store.contents.entries(info)))
    tree = listing.parse((own.root / f"{info.path.hash_part}.ls").read_bytes())
    assert tree == await own.store.contents.file_tree(info)
    assert content_of(await own.cache.file(f"log/{deriver.base_name}")) == b"built"
    assert await own.cache.narinfo(info.path.hash_part) == bytes(published)
    assert own.cache.narinfo_at_once(info.path.hash_part) == bytes(published)


@pytest.mark.parametrize("lie", ["hash", "size"])
async def test_a_local_path_that_has_changed(tmp_path: Path, lie: str) -> None:
    own = Own(tmp_path)
    info = own.add("hello", b"content")
    bad = replace(info, nar_hash=HELLO.info.nar_hash) if lie == "hash" else replace(info, nar_size=1)
    with pytest.raises(StorageError, match="nix-store --verify"):
        await own.cache.add_local(bad)
    assert own.names == set()


async def test_a_path_that_no_store_has(tmp_path: Path) -> None:
    own = Own(tmp_path)
    own.watch_order({HELLO.path})
    info, content = closure_info([HELLO.path])
    await own.cache.add_entries(info, closure_info_entries(content))
    published = own.narinfo(info.path.hash_part)
    assert replace(published.info, signatures=()) == info
    assert content in nar_of(own, info.path.hash_part)


async def test_signatures_are_added_once(tmp_path: Path) -> None:
    own = Own(tmp_path)
    for _ in range(2):
        await own.cache.announce(HELLO.narinfo)
    signatures = own.narinfo(HASH).info.signatures
    assert signatures == (*HELLO.info.signatures, own.key.sign(HELLO.info))
    await own.cache.announce(own.narinfo(HASH))
    assert own.narinfo(HASH).info.signatures == signatures


async def test_what_the_cache_says_of_itself(tmp_path: Path) -> None:
    own = Own(tmp_path)
    for priority in (30, 30, 20):
        await own.cache.initialise(priority)
        assert f"Priority: {priority}\n" in (own.root / "nix-cache-info").read_text()
    assert own.files.written == ["nix-cache-info"] * 2, "the same is not written again"


# --- reading through --------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "xz", "zstd"])
async def test_read_through(tmp_path: Path, compression: str) -> None:
    path = cached("hello", compression=compression)
    async with serving(path) as cache, own(tmp_path, cache) as mine:
        text = await mine.cache.narinfo(HASH)
        assert text is not None
        told = NarInfo.parse(text)
        assert verified_by(told.info, [KEY.public_key])
        assert verified_by(told.info, [mine.key.public_key])
        assert content_of(await mine.cache.file(path.listing_name)) == path.listing
        assert mine.names == {path.listing_name}, "the NAR nobody wants yet"
        assert mine.cache.narinfo_at_once(HASH) is None
        mine.watch_order()
        assert content_of(await mine.cache.file(told.url)) == path.packed
        assert nar_of(mine, HASH) == path.nar
        assert listing.parse((mine.root / path.listing_name).read_bytes()) == path.tree
        # From now on it is ours, under its old name too.
        cache.files.clear()
        assert content_of(await mine.cache.file(told.url)) == path.packed
        assert await mine.cache.narinfo(HASH) == bytes(mine.narinfo(HASH))
        assert cache.asked[path.narinfo.url] == 1


async def test_many_ask_at_once(tmp_path: Path) -> None:
    async with serving(HELLO) as cache, own(tmp_path, cache) as mine:
        found = await asyncio.gather(*(mine.cache.file(NAR_URL) for _ in range(20)))
        assert {content_of(location) for location in found} == {HELLO.packed}
        assert cache.asked[HELLO.narinfo.url] == 1


async def test_who_asks_meanwhile_does_not_fetch_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though he could have looked into the store before it was there, and hear of that when all is over."""
    over, looks = asyncio.Event(), 0
    async with serving(HELLO) as cache, own(tmp_path, cache) as mine:
        files = mine.cache._files
        look = files.get

        async def get(name: str) -> bytes | None:
            nonlocal looks
            found = await look(name)
            looks += name.endswith(".narinfo")
            if looks == 2:
                await over.wait()
            return found

        monkeypatch.setattr(files, "get", get)
        first, second = (asyncio.ensure_future(mine.cache.file(NAR_URL)) for _ in range(2))
        assert content_of(await first) == HELLO.packed
        over.set()
        assert content_of(await second) == HELLO.packed
        assert cache.asked[HELLO.narinfo.url] == 1


async def test_nars_that_do_not_end_hold_up_nothing_else(tmp_path: Path) -> None:
    """However many of them clients ask for: there are only so many threads."""
    stalled = [cached(f"stalled-{number}", {b"": b"x"}) for number in range(40)]
    released = asyncio.Event()

    async def stall(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return await hang_up(request)

    async with serving(*stalled, HELLO) as cache, asking(cache.url, request_timeout=60) as upstream:
        for path in stalled:
            cache.faults[path.narinfo.url] = begun(path.packed[:20], len(path.packed), stall)
        mine = Own(tmp_path, [upstream])
        asked = [asyncio.ensure_future(mine.cache.file(told_url(path))) for path in stalled]
        while not any(cache.asked[path.narinfo.url] for path in stalled):  # noqa: ASYNC110 - by the server
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        for _ in range(3):
            assert await mine.cache.narinfo(HASH) is not None
            assert await mine.cache.file(f"log/{HASH}-x.drv") is None
        assert not any(one.done() for one in asked)
        released.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(result) for result in results} == {SubstituterUnreachable}


async def test_two_upstreams_that_pack_differently(tmp_path: Path) -> None:
    """Each client gets what it was told of, though both ask for the same path at the same time."""
    packed = cached("hello", compression="zstd")
    async with serving(HELLO) as one, serving(packed) as two, own(tmp_path, one, two) as mine:
        urls = [NAR_URL, f"{NAR_URL[:-3]}.zst"]
        found = await asyncio.gather(*map(mine.cache.file, urls))
        assert [content_of(location) for location in found] == [HELLO.packed, packed.packed]


async def absent(mine: Own, names: Sequence[str]) -> None:
    for name in names:
        assert await mine.cache.file(name) is None, name


async def test_bad_names(tmp_path: Path) -> None:
    async with serving(HELLO) as cache, own(tmp_path, cache) as mine:
        await absent(
            mine,
            [
                f"{HASH}.lz",
                f"{'0' * 32}.ls",
                f"nar/{HASH}.nar.xz",
                f"nar/{'e' * 84}.nar.xz",
                f"nar/{HASH}{'0' * 52}.nar.xz",
                f"{NAR_URL[:-3]}.zst",
                NAR_URL[:-3],
                f"{NAR_URL}.xz",
                f"log/{HASH}-x.drv",
            ],
        )
        assert await mine.cache.narinfo("e" * 32) is None
        assert mine.names == set()
        assert cache.asked[HELLO.narinfo.url] == 0


FAULTS: dict[str, Fault] = {
    "404": status(404),
    "500": status(500),
    "nonsense": body(b"nonsense"),
    "empty": body(b""),
    "too slow": slow_headers,
    "reset": reset,
    "cut": begun(HELLO.packed[:50], len(HELLO.packed), hang_up),
    "another": body(cached("hello", {b"": Directory()}).packed),
}


def patience(what: str) -> float:
    return 1 if what == "too slow" else 60


# After these nobody knows what the cache has.
UNREACHABLE = {"500", "too slow", "reset", "cut"}


@pytest.mark.parametrize("what", FAULTS)
async def test_a_bad_nar_comes_from_the_next(tmp_path: Path, what: str) -> None:
    async with (
        serving(HELLO) as bad,
        serving(HELLO) as good,
        own(tmp_path, bad, good, seconds=patience(what)) as mine,
    ):
        bad.faults[HELLO.narinfo.url] = FAULTS[what]
        mine.watch_order()
        with capture_logs() as logs:
            assert content_of(await mine.cache.file(NAR_URL)) == HELLO.packed
        assert [entry["cache"] for entry in logs if entry["event"] == "upstream-passed-over"] == [bad.url]
        assert good.asked[HELLO.narinfo.url] == 1
        assert nar_of(mine, HASH) == HELLO.nar


@pytest.mark.parametrize("what", FAULTS)
async def test_a_bad_nar_that_nobody_else_has(tmp_path: Path, what: str) -> None:
    async with serving(HELLO) as bad, own(tmp_path, bad, seconds=patience(what)) as mine:
        bad.faults[HELLO.narinfo.url] = FAULTS[what]
        if what in UNREACHABLE:
            with pytest.raises(SubstituterUnreachable):
                await mine.cache.file(NAR_URL)
        else:
            await absent(mine, [NAR_URL])
        assert mine.names == set(), "nothing wrong is kept"


@pytest.mark.parametrize("what", [fault for fault in FAULTS if fault != "another"])
async def test_a_bad_narinfo_comes_from_the_next(tmp_path: Path, what: str) -> None:
    async with (
        serving(HELLO) as bad,
        serving(HELLO) as good,
        own(tmp_path, bad, good, seconds=patience(what)) as mine,
    ):
        bad.faults[HELLO.narinfo_name] = FAULTS[what]
        assert await mine.cache.narinfo(HASH) is not None
        assert content_of(await mine.cache.file(NAR_URL)) == HELLO.packed
        assert bad.asked[HELLO.narinfo.url] == 0


async def test_lies_and_the_unreachable(tmp_path: Path) -> None:
    unsigned = cached("hello", key=None)
    forged = cached("hello", key=OTHER_KEY)
    other = cached("other")
    async with serving(unsigned) as one, serving(forged) as two, serving() as three, serving(HELLO) as good:
        three.files[HELLO.narinfo_name] = bytes(other.narinfo)
        gone = "http://127.0.0.1:9"
        async with own(tmp_path / "all", one, gone, two, three, good) as mine:
            assert await mine.cache.narinfo(HASH) is not None
            assert content_of(await mine.cache.file(HELLO.listing_name)) == HELLO.listing
            assert content_of(await mine.cache.file(NAR_URL)) == HELLO.packed
        async with own(tmp_path / "liars", one, gone, two, three) as mine:
            assert await mine.cache.narinfo(HASH) is None
            await absent(mine, [HELLO.listing_name, NAR_URL])
            assert mine.names == set()


async def test_when_nobody_answers(tmp_path: Path) -> None:
    """A plain no would be remembered by clients; it is given where one of several says it."""
    gone = "http://127.0.0.1:9"
    async with serving(HELLO) as bad, serving() as empty:
        bad.faults[HELLO.narinfo_name] = reset
        async with own(tmp_path / "both", bad, gone) as mine:
            with pytest.raises(SubstituterUnreachable):
                await mine.cache.narinfo(HASH)
            with pytest.raises(SubstituterUnreachable):
                await mine.cache.file(NAR_URL)
            await absent(mine, [HELLO.listing_name])
        async with own(tmp_path / "one", gone, empty) as mine:
            assert await mine.cache.narinfo(HASH) is None
            await absent(mine, [NAR_URL])
        async with own(tmp_path / "none") as mine:
            assert await mine.cache.narinfo(HASH) is None


@pytest.mark.parametrize("what", ["500", "too slow", "reset", "nonsense", "empty"])
async def test_a_listing_that_does_not_come(tmp_path: Path, what: str) -> None:
    async with serving(HELLO) as bad, serving(HELLO) as good:
        bad.faults[HELLO.listing_name] = FAULTS[what]
        async with own(tmp_path / "both", bad, good, seconds=patience(what)) as mine:
            assert content_of(await mine.cache.file(HELLO.listing_name)) == HELLO.listing
        async with own(tmp_path / "one", bad, seconds=patience(what)) as mine:
            await absent(mine, [HELLO.listing_name])


@pytest.mark.parametrize("what", ["404", "500", "nonsense", "empty"])
async def test_a_path_is_kept_without_its_bad_listing(tmp_path: Path, what: str) -> None:
    async with serving(HELLO) as cache, own(tmp_path, cache) as mine:
        cache.faults[HELLO.listing_name] = FAULTS[what]
        assert content_of(await mine.cache.file(NAR_URL)) == HELLO.packed
        assert HELLO.listing_name not in mine.names
        assert mine.narinfo(HASH).info.path == HELLO.path


async def test_another_build_is_not_what_was_told(tmp_path: Path) -> None:
    """Nor is another compression: the client would not understand it."""
    rebuilt = cached("hello", {b"": b"other"})
    packed = cached("hello", compression="zstd")
    async with serving(rebuilt) as one, serving(packed) as two, serving(HELLO) as three:
        async with own(tmp_path / "absent", one, two) as mine:
            await absent(mine, [NAR_URL])
            assert mine.names == set()
        async with own(tmp_path / "there", one, two, three) as mine:
            assert content_of(await mine.cache.file(NAR_URL)) == HELLO.packed
            assert nar_of(mine, HASH) == HELLO.nar


async def test_our_own_build_is_not_what_an_upstream_told(tmp_path: Path) -> None:
    async with serving(HELLO) as cache, own(tmp_path, cache) as mine:
        info = mine.add("hello", b"built here")
        assert info.path == HELLO.path
        await mine.cache.announce(await mine.cache.add_local(info))
        assert content_of(await mine.cache.file(NAR_URL)) == HELLO.packed
    async with serving(HELLO) as cache, own(tmp_path / "lost", cache) as mine:
        await mine.cache.file(NAR_URL)
        (mine.root / mine.narinfo(HASH).url).unlink()
        assert content_of(await mine.cache.file(NAR_URL)) == HELLO.packed, "it is fetched again"


async def test_mirroring_tells_what_is_wrong(tmp_path: Path) -> None:
    async with serving(HELLO) as cache, own(tmp_path, cache) as mine:
        [upstream] = mine.upstreams
        cache.files[HELLO.narinfo.url] = b"nonsense"
        narinfo = await upstream.narinfo(HELLO.path)
        assert narinfo is not None
        with pytest.raises(CorruptPath, match="its NAR"):
            await mine.cache.mirror(upstream, narinfo)
        with pytest.raises(CorruptPath):  # it is not asked again
            await upstream.narinfo(HELLO.path)
        assert mine.names == set()


async def test_content_addresses_need_no_signature_of_ours(tmp_path: Path) -> None:
    info, content = closure_info([HELLO.path])
    path = cached(
        "closure-info",
        {b"": Directory(), b"store-paths": content},
        [HELLO.path],
        key=None,
        path=info.path,
        content_address=info.content_address,
    )
    async with serving(path) as cache, own(tmp_path, cache) as mine:
        text = await mine.cache.narinfo(info.path.hash_part)
        assert text is not None
        told = NarInfo.parse(text)
        assert told.info.signatures == ()
        assert content_of(await mine.cache.file(told.url)) == path.packed
        assert mine.narinfo(info.path.hash_part).info.signatures != (), "now its content is known"


async def test_without_upstreams_there_is_what_is_there(tmp_path: Path) -> None:
    mine = Own(tmp_path)
    assert await mine.cache.narinfo(HASH) is None
    await absent(mine, [NAR_URL, HELLO.listing_name, f"log/{StorePath('0' * 32, 'x.drv').base_name}"])


async def test_a_narinfo_that_lost_its_content(tmp_path: Path) -> None:
    """As a power failure can leave it: it counts as absent."""
    async with serving(HELLO) as cache, own(tmp_path, cache) as mine:
        (mine.root / HELLO.narinfo_name).touch()
        assert await mine.cache.narinfo(HASH) is not None
        assert mine.cache.narinfo_at_once(HASH) is None
        assert content_of(await mine.cache.file(NAR_URL)) == HELLO.packed
        assert (mine.root / HELLO.narinfo_name).stat().st_size > 0


async def test_the_key_is_the_one_given(tmp_path: Path) -> None:
    key = SecretKey.generate("given-1")
    mine = Own(tmp_path, key=key)
    await mine.cache.announce(HELLO.narinfo)
    assert verified_by(mine.narinfo(HASH).info, [key.public_key])
