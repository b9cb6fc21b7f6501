import asyncio
import gzip
import itertools
import lzma
import struct
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import structlog

from nixery_snap.errors import CorruptPath, InvalidFormat, PathsMissing, SubstituterError
from nixery_snap.nix import listing
from nixery_snap.nix.content_address import ContentAddress, store_path
from nixery_snap.nix.file_tree import Directory, Node, Regular, Symlink
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.decompression import zstd
from nixery_snap.nix_stores.substituted_contents import SubstitutedContents
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.nix_stores.verified_nar import unverified_root, verified_entries
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Records
from tests.support.waiting import until
from tests.unit.nix_stores.caches import (
    DIRECTORY,
    CachedPath,
    Fault,
    Files,
    ScriptedCache,
    asking,
    begun,
    body,
    cached,
    give_time,
    hang_up,
    reset,
    serving,
    sha256,
    slow_headers,
    status,
)

HELLO = cached("hello")
LINK = cached("link", {b"": Symlink("/nix/store/elsewhere")})
FILE = cached("file", {b"": b"a file"})
EMPTY = cached("empty", {b"": b""})
PACK = {"gzip": gzip.compress, "zstd": zstd.compress}
# A field of a header, and a frame that is skipped (RFC 1952, 2.3.1.1; RFC 8878, 3.1.2).
LARGE_AND_EMPTY = {
    "gzip": b"\x1f\x8b\x08\x04"
    + bytes(6)
    + struct.pack("<H", 20_000)
    + bytes(20_000)
    + gzip.compress(b"")[10:],
    "zstd": b"\x50\x2a\x4d\x18" + struct.pack("<I", 20_000) + bytes(20_000),
}


@asynccontextmanager
async def reading(
    *caches: ScriptedCache, records: Records | None = None, nar_timeout: float = 60
) -> AsyncIterator[SubstitutedContents]:
    """`nar_timeout`: between two pieces of a NAR from the first of them."""
    async with AsyncExitStack() as stack:
        records = records or StoredRecords(ObjectStore("memory://"), 1 << 20)
        substituters = [
            await stack.enter_async_context(
                asking(cache.url, records, request_timeout=60 if number else nar_timeout)
            )
            for number, cache in enumerate(caches)
        ]
        for substituter in substituters:
            give_time(substituter)
        yield SubstitutedContents(Substituters(substituters), records, asyncio.get_running_loop())


def at(cache: ScriptedCache, path: CachedPath) -> PathInfo:
    return replace(path.info, origin=cache.url)


async def root(contents: SubstitutedContents, info: PathInfo) -> Node:
    return (await contents.roots([info]))[info.path]


def without_listing(cache: ScriptedCache, *paths: CachedPath) -> None:
    for path in paths:
        del cache.files[path.listing_name]


def read_all(contents: SubstitutedContents, info: PathInfo) -> Files:
    """Blocking."""
    return {
        entry.name: b"".join(entry.content) if isinstance(entry.node, Regular) else entry.node
        for entry in contents.entries(info)
    }


async def read(contents: SubstitutedContents, info: PathInfo) -> Files:
    return await asyncio.to_thread(read_all, contents, info)


async def test_listings_will_do() -> None:
    async with serving(HELLO, LINK, FILE) as cache, reading(cache) as contents:
        assert await root(contents, at(cache, HELLO)) == Directory()
        assert await root(contents, at(cache, LINK)) == Symlink("/nix/store/elsewhere")
        assert await contents.file_tree(at(cache, FILE)) == Regular(6)
        for _ in range(2):
            assert await contents.file_tree(at(cache, HELLO)) == HELLO.tree
        assert cache.asked[HELLO.listing_name] == 2
        assert not any(name.startswith("nar/") for name in cache.asked)


@pytest.mark.parametrize("compression", ["none", "xz", "zstd"])
async def test_nars_where_there_is_no_listing(compression: str) -> None:
    paths = [
        cached("hello", compression=compression),
        cached("link", {b"": Symlink("x")}, compression=compression),
        cached("empty", {b"": b""}, compression=compression),
    ]
    async with serving(*paths) as cache, reading(cache) as contents:
        without_listing(cache, *paths)
        for path in paths:
            expected = path.tree if not isinstance(path.tree, Directory) else Directory()
            assert await root(contents, at(cache, path)) == expected
            assert await contents.file_tree(at(cache, path)) == path.tree
    async with serving(*paths) as cache, reading(cache) as contents:
        files = await read(contents, at(cache, paths[0]))
        assert files == DIRECTORY
        assert list(files) == list(DIRECTORY)


async def test_roots_take_little_of_a_nar() -> None:
    content = b"".join(index.to_bytes(4, "big") for index in range(2_500_000))
    for compression in ("none", "xz", "zstd"):
        large = cached("large", {b"": Directory(), b"a": content}, compression=compression)
        async with serving(large) as cache, reading(cache) as contents:
            without_listing(cache, large)
            cache.sent_bytes = 0
            assert await root(contents, at(cache, large)) == Directory()
            assert cache.sent_bytes < 140_000
            assert cache.asked[large.narinfo.url] == 1
            assert len(cache.ranges) == 1


async def test_roots_where_the_first_bytes_are_not_enough() -> None:
    content = b"".join(index.to_bytes(4, "big") for index in range(700_000))
    large = cached("large", {b"": Directory(), b"a": content})
    packed = LARGE_AND_EMPTY["zstd"] * 13 + zstd.compress(large.nar)  # nothing, for 256 KiB
    large.narinfo = replace(large.narinfo, compression="zstd", file_size=len(packed))
    large.packed = packed
    async with serving(large) as cache, reading(cache) as contents:
        without_listing(cache, large)
        assert await root(contents, at(cache, large)) == Directory()
        assert cache.asked[large.narinfo.url] == 2


async def test_roots_and_trees_are_recorded() -> None:
    records = StoredRecords(ObjectStore("memory://"), 1 << 20)
    async with serving(HELLO, FILE) as cache:
        without_listing(cache, HELLO)
        for _ in range(2):
            async with reading(cache, records=records) as contents:
                assert await contents.file_tree(at(cache, HELLO)) == HELLO.tree
                assert await root(contents, at(cache, FILE)) == Regular(6)
        assert cache.asked[HELLO.narinfo.url] == 1
        assert cache.asked[FILE.listing_name] == 1


async def test_roots_of_an_image_are_one_record() -> None:
    store = ObjectStore("memory://")
    others = [cached(f"path-{number}") for number in range(50)]
    every = [HELLO, LINK, FILE, EMPTY, *others]
    async with serving(*every) as cache:

        async def ask(*paths: CachedPath) -> dict[StorePath, Node]:
            async with reading(cache, records=StoredRecords(store, 1 << 20)) as contents:
                return dict(await contents.roots([at(cache, path) for path in paths]))

        first = await ask(*every)
        assert len(first) == len(every)
        assert first[LINK.path] == Symlink("/nix/store/elsewhere")
        assert (first[FILE.path], first[EMPTY.path]) == (Regular(6), Regular(0))
        assert all(first[path.path] == Directory() for path in (HELLO, *others))
        assert len([key async for key, _ in store.list("records/roots")]) == 1
        assert len([key async for key, _ in store.list("records/root/")]) == 0
        listings = sum(number for name, number in cache.asked.items() if name.endswith(".ls"))
        assert listings == len(every)
        assert await ask(*every) == first
        assert sum(number for name, number in cache.asked.items() if name.endswith(".ls")) == listings
        # Another image, another record.
        assert await ask(LINK, FILE) == {path.path: first[path.path] for path in (LINK, FILE)}
        assert cache.asked[LINK.listing_name] == 2


async def test_roots_that_are_known_are_not_asked_for_again() -> None:
    records = StoredRecords(ObjectStore("memory://"), 1 << 20)
    async with serving(HELLO, LINK, FILE) as cache:
        every = [at(cache, path) for path in (HELLO, LINK, FILE)]
        for begin_with in (every[:2], every):  # the second time all comes from the record
            async with reading(cache, records=records) as contents:
                await contents.roots(begin_with)
                found = await contents.roots(every)
                assert [found[info.path] for info in every] == [Directory(), LINK.tree, FILE.tree]
                assert [cache.asked[path.listing_name] for path in (HELLO, LINK, FILE)] == [1, 1, 1]
                assert await contents.roots([]) == {}


async def test_what_a_nar_says_is_recorded_for_every_image() -> None:
    records = StoredRecords(ObjectStore("memory://"), 1 << 20)
    async with serving(HELLO, LINK, FILE) as cache:
        without_listing(cache, HELLO)
        for other in (LINK, FILE):
            async with reading(cache, records=records) as contents:
                found = await contents.roots([at(cache, HELLO), at(cache, other)])
                assert found[HELLO.path] == Directory()
        assert cache.asked[HELLO.narinfo.url] == 1


async def test_one_bad_path_among_many() -> None:
    paths = [cached(f"path-{number}", {b"": Directory(), b"a": b"%d" % number}) for number in range(10)]
    async with serving(*paths) as bad, serving(*paths) as good:
        without_listing(bad, *paths)
        bad.files[paths[3].narinfo.url] = b"nothing"
        async with reading(bad) as contents:
            with pytest.raises(CorruptPath) as caught:
                await contents.roots([at(bad, path) for path in paths])
            assert caught.value.path == str(paths[3].path)
        async with reading(bad, good) as contents:
            found = await contents.roots([at(bad, path) for path in paths])
            assert [found[path.path] for path in paths] == [Directory()] * 10
            assert good.asked[paths[3].listing_name] == 1
            assert good.asked[paths[4].listing_name] == 0


async def test_names_that_are_no_text() -> None:
    odd = cached("odd", {b"": Directory(), b"\xc3\xa9": Symlink("\udcff"), b"\xff\xfe": b"x"})
    async with serving(odd) as cache, reading(cache) as contents:
        assert await contents.file_tree(at(cache, odd)) == odd.tree
        without_listing(cache, odd)
        async with reading(cache) as again:
            assert await again.file_tree(at(cache, odd)) == odd.tree
            assert (await read(again, at(cache, odd))).keys() == {b"", b"\xff\xfe", b"\xc3\xa9"}


async def test_unknown() -> None:
    async with serving(HELLO) as cache, reading(cache) as contents:
        for info in (cached("unknown").info, replace(cached("unknown").info, origin=cache.url)):
            with pytest.raises(PathsMissing):
                await root(contents, info)
            with pytest.raises(PathsMissing):
                await contents.file_tree(info)
            with pytest.raises(PathsMissing):
                await read(contents, info)


async def test_readers_that_leave_early() -> None:
    large = cached(
        "large", {b"": Directory(), b"a": bytes(range(256)) * 200_000, b"b": b"x"}, compression="none"
    )
    async with serving(large) as cache, reading(cache) as contents:

        def some() -> list[bytes]:
            entries = contents.entries(at(cache, large))
            names = [next(entries).name, next(entries).name]
            entries.close()  # type: ignore[attr-defined] # it is a generator
            return names

        assert await asyncio.to_thread(some) == [b"", b"a"]
        await until(
            lambda: not [task for task in asyncio.all_tasks() if "_pump" in str(task) or "hold" in str(task)]
        )
        # One that skips contents gets all names, and the NAR is verified all the same.
        names = await asyncio.to_thread(lambda: [entry.name for entry in contents.entries(at(cache, large))])
        assert names == [b"", b"a", b"b"]


async def test_no_content_is_kept_in_memory() -> None:
    large = cached("large", {b"": Directory(), b"a": bytes(64_000_000)}, compression="xz")
    async with serving(large) as cache, reading(cache) as contents:
        without_listing(cache, large)
        large.nar = b""
        tracemalloc.start()
        try:
            await contents.file_tree(at(cache, large))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 20_000_000


# --- what must not be believed ----------------------------------------------------------------------

OTHER = cached("hello", {**DIRECTORY, b"large": b"9123456789" * 100_000})
BOMB = bytes(200_000_000)
BAD_NARS: dict[str, tuple[bytes, str]] = {
    "another of the same size": (OTHER.packed, "hash must be"),
    "a shorter one": (cached("hello", {b"": b"x"}).packed, "bytes"),
    "cut short": (HELLO.packed[:-20], "too early"),
    "with something behind it": (HELLO.packed + b"x" * 20, "xz"),
    "a NAR and more": (lzma.compress(HELLO.nar + bytes(8)), ""),
    "not compressed so": (HELLO.nar, "xz"),
    "nothing": (b"", "too early"),
    "no NAR": (lzma.compress(b"<html>" * 1000), "NAR"),
    "a bomb": (lzma.compress(HELLO.nar + BOMB), ""),
    "a bomb from the start": (lzma.compress(BOMB), "NAR"),
}


@pytest.mark.parametrize("what", BAD_NARS)
async def test_bad_nars(what: str) -> None:
    packed, reason = BAD_NARS[what]
    records = StoredRecords(ObjectStore("memory://"), 1 << 20)
    async with serving(HELLO) as cache:
        without_listing(cache, HELLO)
        cache.files[HELLO.narinfo.url] = packed
        async with reading(cache, records=records) as contents:
            with structlog.testing.capture_logs() as logs, pytest.raises(CorruptPath) as caught:
                await read(contents, at(cache, HELLO))
            assert reason in str(caught.value)
            assert (caught.value.url, caught.value.path) == (cache.url, str(HELLO.path))
            assert [entry["event"] for entry in logs] == ["path-info-refused"]
            # The path is refused from now on.
            with pytest.raises(CorruptPath):
                await contents.file_tree(at(cache, HELLO))
            assert cache.asked[HELLO.narinfo.url] == 1
        async with reading(cache, records=records) as contents:
            with pytest.raises(CorruptPath):
                await contents.file_tree(at(cache, HELLO))
        # Nothing wrong is recorded.
        cache.add(HELLO)
        without_listing(cache, HELLO)
        async with reading(cache, records=records) as contents:
            assert await contents.file_tree(at(cache, HELLO)) == HELLO.tree


async def test_a_bomb_is_not_read_to_its_end() -> None:
    packed = zstd.compress(HELLO.nar) + zstd.compress(BOMB) * 10
    bad = replace(HELLO.narinfo, compression="zstd")
    async with serving(HELLO) as cache, reading(cache) as contents:
        cache.files[HELLO.narinfo_name] = bytes(bad)
        cache.files[HELLO.narinfo.url] = packed
        tracemalloc.start()
        try:
            with pytest.raises(CorruptPath):
                await read(contents, at(cache, HELLO))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 20_000_000


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize(
    ("large", "most_bytes"), [(False, 200_000), (True, 4_000_000)], ids=["small", "large"]
)
def test_a_stream_that_unpacks_to_nothing_has_an_end(compression: str, large: bool, most_bytes: int) -> None:
    """Empty members could go on for ever, and would all be kept."""
    pack = PACK[compression]
    nothing = LARGE_AND_EMPTY[compression] if large else pack(b"") * (20_000 // len(pack(b"")))
    reason = "compressed" if large else "empty members"
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        yield pack(HELLO.nar)
        while taken < 20_000_000:
            taken += 20_000
            yield nothing

    bad = replace(HELLO.narinfo, compression=compression)
    with pytest.raises(InvalidFormat, match=reason):
        for _ in verified_entries(chunks(), bad):
            pass
    assert taken < most_bytes
    taken = 0
    with pytest.raises(InvalidFormat, match=reason):
        unverified_root(itertools.islice(chunks(), 1, None), bad)


@pytest.mark.parametrize("what", BAD_NARS)
async def test_bad_nars_where_another_cache_has_a_good_one(what: str) -> None:
    packed, _ = BAD_NARS[what]
    async with serving(HELLO) as bad, serving(HELLO) as good, reading(bad, good) as contents:
        without_listing(bad, HELLO)
        without_listing(good, HELLO)
        bad.files[HELLO.narinfo.url] = packed
        assert await contents.file_tree(at(bad, HELLO)) == HELLO.tree
        # What cannot begin anew says so, and from then on it comes from the other.
        assert await read(contents, at(bad, HELLO)) == DIRECTORY
        assert good.asked[HELLO.narinfo.url] == 2


FAULTS: dict[str, tuple[Fault, type[SubstituterError]]] = {
    "404": (status(404), CorruptPath),
    "500": (status(500), CorruptPath),
    "slow headers": (slow_headers, CorruptPath),
    # The root came, so it is too late to begin anew.
    "slow body": (begun(HELLO.packed[:100], len(HELLO.packed), slow_headers), CorruptPath),
    "reset": (begun(HELLO.packed[:100], len(HELLO.packed), reset), CorruptPath),
    "hung up": (begun(HELLO.packed[:100], len(HELLO.packed), hang_up), CorruptPath),
}


@pytest.mark.parametrize("what", FAULTS)
async def test_nars_that_do_not_come(what: str) -> None:
    fault, kind = FAULTS[what]
    seconds = 1 if what.startswith("slow") else 60
    async with serving(HELLO) as bad, serving(HELLO) as good:
        without_listing(bad, HELLO)
        bad.faults[HELLO.narinfo.url] = fault
        async with reading(bad, nar_timeout=seconds) as contents:
            with pytest.raises(kind):
                await read(contents, at(bad, HELLO))
            with pytest.raises(kind):
                await root(contents, at(bad, HELLO))
        async with reading(bad, good, nar_timeout=seconds) as contents:
            assert await root(contents, at(bad, HELLO)) == Directory()
            if "slow body reset hung up".count(what):  # the root was among what came
                with pytest.raises(CorruptPath):
                    await read(contents, at(bad, HELLO))
            assert await read(contents, at(bad, HELLO)) == DIRECTORY


async def test_breaking_off_in_the_middle() -> None:
    """Too late to begin anew: an error, and the next time it comes from elsewhere."""
    large = cached(
        "large", {b"": Directory(), b"a": bytes(range(256)) * 20_000, b"b": b"x"}, compression="none"
    )
    async with serving(large) as bad, serving(large) as good:
        bad.faults[large.narinfo.url] = begun(large.packed[:2_000_000], len(large.packed), hang_up)
        async with reading(bad, good) as contents:
            with pytest.raises(CorruptPath, match="breaks off"):
                await read(contents, at(bad, large))
            assert (await read(contents, at(bad, large))).keys() == {b"", b"a", b"b"}
            assert bad.asked[large.narinfo.url] == 1


@pytest.mark.parametrize(
    "content",
    [b"{}", b"nonsense", gzip.compress(b"{" + bytes(100_000_000)), zstd.compress(HELLO.listing)[:-3]],
)
async def test_bad_listings_are_none(content: bytes) -> None:
    async with serving(HELLO) as cache, reading(cache) as contents:
        cache.faults[HELLO.listing_name] = body(content)
        assert await root(contents, at(cache, HELLO)) == Directory()
        assert await contents.file_tree(at(cache, HELLO)) == HELLO.tree
        assert cache.asked[HELLO.narinfo.url] == 2


def addressed(method: str, content: bytes, files: Files | None = None) -> CachedPath:
    """By the content address of a file, signed by nobody; with other files when they are given."""
    address = f"{method}{sha256(content)}"
    path = store_path("file", ContentAddress.parse(address), (), False)
    return cached("file", files or {b"": content}, key=None, path=path, content_address=address)


@pytest.mark.parametrize("method", ["text:", "fixed:"])
async def test_flat_content_addresses_are_compared(method: str) -> None:
    good = addressed(method, b"right")
    executable: Node = Regular(0, executable=True)
    lies = [
        addressed(method, b"right", {b"": b"wrong"}),
        addressed(method, b"right", {b"": Directory()}),
        addressed(method, b"", {b"": executable}),
    ]
    async with serving(good) as cache, reading(cache) as contents:
        assert await read(contents, at(cache, good)) == {b"": b"right"}
    for lie in lies:
        async with serving(lie) as cache, reading(cache) as contents:
            without_listing(cache, lie)
            with pytest.raises(CorruptPath, match="content address"):
                await read(contents, at(cache, lie))
        async with serving(lie) as cache, reading(cache) as contents:
            without_listing(cache, lie)
            with pytest.raises(CorruptPath, match="content address"):
                await contents.file_tree(at(cache, lie))


async def test_a_listing_is_what_its_own_cache_says() -> None:
    """Records of one cache's listing do not speak for another's."""
    records = StoredRecords(ObjectStore("memory://"), 1 << 20)
    async with serving(FILE) as liar, serving(FILE) as honest:
        liar.files[FILE.listing_name] = listing.encode(Directory(), {})
        async with reading(liar, honest, records=records) as contents:
            assert await root(contents, at(liar, FILE)) == Directory()
            assert await root(contents, at(honest, FILE)) == Regular(6)
