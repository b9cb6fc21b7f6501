"""What is published, to where and in which order; and what images are refused for."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web

from nixery_snap.errors import CorruptPath, PathsNotFetchable, StorageError
from nixery_snap.nix.closure_info import closure_info
from nixery_snap.nix.path_info import Closure, PathInfo
from nixery_snap.nix.signing import SecretKey, verified_by
from nixery_snap.nix_stores.publisher import CachePublisher, Publish
from nixery_snap.nix_stores.substituters import Substituters
from tests.unit.nix_stores.caches import (
    OTHER_KEY,
    CachedPath,
    Fault,
    ScriptedCache,
    asking,
    body,
    cached,
    serving,
    status,
)
from tests.unit.nix_stores.own import URL, Own

PUBLIC = cached("public")
OFFERED = cached("offered", references=[PUBLIC.path])


@dataclass
class Wired:
    """A publisher as the program wires it."""

    own: Own
    publisher: CachePublisher
    lines: list[str] = field(default_factory=list)

    async def offer(self, closure: Closure) -> None:
        await self.publisher.offer(closure, self.lines.append)

    async def publish(self, closure: Closure) -> None:
        await self.publisher.publish(closure, self.lines.append)

    async def push(self, closure: Closure, *, every: bool) -> int:
        return await self.publisher.push(closure, self.lines.append, every=every)


@asynccontextmanager
async def wired(
    directory: Path,
    *caches: ScriptedCache,
    publish: Publish = "missing",
    clients: Collection[str] | None = None,
    upstreams: Collection[str] = (),
    names_closure_info: bool = False,
) -> AsyncIterator[Wired]:
    """`clients`: those and our own by default."""
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(asking(cache.url)) for cache in caches]
        own = Own(directory, [other for other in others if other.url in upstreams])
        substituters = Substituters((own.substituter, *others))
        clients = {URL, *(cache.url for cache in caches)} if clients is None else clients
        publisher = CachePublisher(
            own.cache,
            own.substituter,
            substituters,
            clients,
            upstreams,
            publish,
            names_closure_info=names_closure_info,
        )
        own.watch_order({PUBLIC.path, OFFERED.path})
        yield Wired(own, publisher)


def late(content: bytes) -> Fault:
    async def answer(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return web.Response(body=content)

    return answer


def at(cache: ScriptedCache, path: CachedPath) -> PathInfo:
    return replace(path.info, origin=cache.url)


def closure_of(*infos: PathInfo) -> Closure:
    return {info.path: info for info in sorted(infos, key=lambda info: info.path)}


def private(own: Own) -> list[PathInfo]:
    """A chain of three, the last of which refers to itself too, and to what is public."""
    one = own.add("one", {"a": b"1"})
    two = own.add("two", {"b": b"2"}, one.path)
    three = own.add("three", {"c": b"3"}, one.path, two.path, PUBLIC.path)
    return [one, two, three]


# --- what is published ------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["offer", "publish", "push"])
async def test_what_no_cache_has(tmp_path: Path, act: str) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache) as its:
        infos = [*private(its.own), at(cache, PUBLIC)]
        for _ in range(2):
            if act == "offer":
                await its.offer(closure_of(*infos))
            elif act == "publish":
                await its.publish(closure_of(*infos))
            else:
                await its.push(closure_of(*infos), every=False)
        assert its.own.published == {"one", "two", "three"}
        assert its.lines == ["publishing 3 store paths"], "the second time there is nothing to do"
        narinfos = [name for name in its.own.files.written if name.endswith(".narinfo")]
        assert [its.own.narinfo(name[:32]).info.path.name for name in narinfos] == ["one", "two", "three"]
        for info in infos[:3]:
            assert verified_by(its.own.narinfo(info.path.hash_part).info, [its.own.key.public_key])


async def test_local_paths_that_a_cache_of_the_clients_has(tmp_path: Path) -> None:
    """Their origin says nothing: the local store knew them first."""
    async with serving(PUBLIC) as cache, wired(tmp_path, cache) as its:
        await its.offer(closure_of(PUBLIC.info))
        assert its.own.published == set()
        assert cache.asked[PUBLIC.narinfo_name] == 1


async def test_paths_from_a_cache_of_the_clients_are_not_asked_for(tmp_path: Path) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache) as its:
        await its.offer(closure_of(at(cache, PUBLIC)))
        assert cache.asked[PUBLIC.narinfo_name] == 0


async def test_from_a_cache_that_clients_are_not_told_of(tmp_path: Path) -> None:
    async with serving(PUBLIC, OFFERED) as cache, wired(tmp_path, cache, clients={URL}) as its:
        await its.offer(closure_of(at(cache, PUBLIC), at(cache, OFFERED)))
        assert its.own.published == {"public", "offered"}
        assert its.own.narinfo(PUBLIC.path.hash_part).file_hash == PUBLIC.narinfo.file_hash


async def test_copies_come_after_what_they_refer_to(tmp_path: Path) -> None:
    async with serving(PUBLIC, OFFERED) as cache, wired(tmp_path, cache, clients={URL}) as its:
        its.own.watch_order()
        cache.faults[PUBLIC.narinfo.url] = late(PUBLIC.packed)
        await its.offer(closure_of(at(cache, PUBLIC), at(cache, OFFERED)))
        assert its.own.published == {"public", "offered"}


async def test_all(tmp_path: Path) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache, publish="all") as its:
        infos = [*private(its.own), at(cache, PUBLIC)]
        await its.offer(closure_of(*infos))
        assert its.own.published == {"one", "two", "three", "public"}
        await its.publish(closure_of(*infos))
        assert its.lines == ["publishing 4 store paths"]


async def test_off(tmp_path: Path) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache, publish="off") as its:
        infos = private(its.own)
        await its.publish(closure_of(*infos, at(cache, PUBLIC)))
        with pytest.raises(PathsNotFetchable) as caught:
            await its.offer(closure_of(*infos, at(cache, PUBLIC)))
        assert set(caught.value.paths) == {str(info.path) for info in infos}
        await its.offer(closure_of(at(cache, PUBLIC)))
        assert its.own.names == set()
        # By hand it can be done.
        assert await its.push(closure_of(*infos, at(cache, PUBLIC)), every=False) == 3
        await its.offer(closure_of(*infos, at(cache, PUBLIC)))


async def test_push_every(tmp_path: Path) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache) as its:
        closure = closure_of(*private(its.own), at(cache, PUBLIC))
        assert await its.push(closure, every=True) == 4
        assert await its.push(closure, every=True) == 0
        assert its.own.published == {"one", "two", "three", "public"}


async def test_what_is_removed_while_it_is_published(tmp_path: Path) -> None:
    """A sweep that began before takes the NARs after the narinfos: what was there for one, is gone for the other."""
    async with wired(tmp_path, names_closure_info=True) as its:
        closure = closure_of(its.own.add("one", {"a": b"1"}))
        await its.offer(closure)
        narinfos = [*its.own.root.glob("*.narinfo")]
        nars = [*its.own.root.glob("nar/*")]
        assert len(narinfos) == len(nars) == 2
        for narinfo in narinfos:
            narinfo.unlink()
        its.own.substituter.forget()
        await its.offer(closure)
        for nar in nars:
            nar.unlink()
        its.own.substituter.forget()  # as after every sweep
        await its.offer(closure)
        assert {*its.own.root.glob("nar/*")} == {*nars}
        assert {*its.own.root.glob("*.narinfo")} == {*narinfos}


# --- which clients there are ------------------------------------------------------------------------


async def test_clients_that_do_not_know_our_cache(tmp_path: Path) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache, clients={cache.url}) as its:
        [one, *_] = private(its.own)
        await its.offer(closure_of(at(cache, PUBLIC)))
        with pytest.raises(PathsNotFetchable) as caught:
            await its.offer(closure_of(one, at(cache, PUBLIC)))
        assert caught.value.paths == (str(one.path),)
        assert its.own.names == set(), "nobody would fetch it"


@pytest.mark.parametrize("told", [True, False])
async def test_what_our_cache_reads_through(tmp_path: Path, told: bool) -> None:
    """Those who fetch from it can fetch that too."""
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(serving(PUBLIC))
        clients = {URL} if told else set()
        its = await stack.enter_async_context(wired(tmp_path, cache, clients=clients, upstreams={cache.url}))
        for info in (at(cache, PUBLIC), PUBLIC.info):
            if told:
                await its.offer(closure_of(info))
            else:
                with pytest.raises(PathsNotFetchable):
                    await its.offer(closure_of(info))
        assert its.own.published == set()


@pytest.mark.parametrize("fault", [status(404), status(500), body(b"nonsense")])
async def test_a_cache_that_fails_has_nothing(tmp_path: Path, fault: object) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache) as its:
        cache.faults["*"] = fault  # type: ignore[assignment]
        infos = private(its.own)[:2]
        await its.offer(closure_of(*infos))
        assert its.own.published == {"one", "two"}


async def test_a_cache_that_lies_has_nothing(tmp_path: Path) -> None:
    async with serving() as cache, wired(tmp_path, cache) as its:
        [one, *_] = private(its.own)
        forged = cached("one", {b"": b"evil"}, key=OTHER_KEY)
        assert forged.path == one.path
        cache.add(forged)
        await its.offer(closure_of(one))
        assert its.own.published == {"one"}


async def test_what_another_key_of_ours_has_signed_is_published_again(tmp_path: Path) -> None:
    async with wired(tmp_path) as its:
        [one, *_] = private(its.own)
        await its.offer(closure_of(one))
    async with wired(tmp_path / "new") as its:
        [one, *_] = private(its.own)
        (its.own.root).mkdir(exist_ok=True)
        stale = replace(one, signatures=(SecretKey.generate("own-1").sign(one),))
        narinfo = await its.own.cache.add_local(one)
        (its.own.root / f"{one.path.hash_part}.narinfo").write_bytes(bytes(replace(narinfo, info=stale)))
        await its.offer(closure_of(one))
        assert verified_by(its.own.narinfo(one.path.hash_part).info, [its.own.key.public_key])


# --- what goes wrong --------------------------------------------------------------------------------


async def test_a_path_that_cannot_be_packed(tmp_path: Path) -> None:
    """Nothing is announced as long as anything is missing."""
    async with wired(tmp_path) as its:
        one, two, three = private(its.own)
        bad = replace(two, nar_size=two.nar_size + 1)
        with pytest.raises(StorageError):
            await its.offer(closure_of(one, bad, replace(three, references=(one.path, two.path))))
        assert its.own.published == set()
        await its.offer(closure_of(one, two, replace(three, references=(one.path, two.path))))
        assert its.own.published == {"one", "two", "three"}


@pytest.mark.parametrize("written", [0, 1, 2])
async def test_a_store_that_fails_in_the_middle(tmp_path: Path, written: int) -> None:
    """What is announced by then is whole, and the next time the rest follows."""
    async with serving(PUBLIC) as cache, wired(tmp_path, cache) as its:
        closure = closure_of(*private(its.own), at(cache, PUBLIC))
        in_order = its.own.files.before_put

        def before_put(name: str, content: bytes) -> None:
            in_order(name, content)
            if len(its.own.published) == written and name.endswith(".narinfo"):
                raise StorageError("the disk is full")

        its.own.files.before_put = before_put
        with pytest.raises(StorageError, match="full"):
            await its.offer(closure)
        assert its.own.published == set(["one", "two", "three"][:written])
        its.own.files.before_put = in_order
        await its.offer(closure)
        assert its.own.published == {"one", "two", "three"}


async def test_a_cache_that_loses_its_nar(tmp_path: Path) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache, clients={URL}) as its:
        cache.files[PUBLIC.narinfo.url] = b"nonsense"
        with pytest.raises(CorruptPath):
            await its.offer(closure_of(at(cache, PUBLIC)))
        assert its.own.names == set()


async def test_a_cache_that_loses_its_path(tmp_path: Path) -> None:
    async with serving() as cache, wired(tmp_path, cache, clients={URL}) as its:
        with pytest.raises(PathsNotFetchable) as caught:
            await its.offer(closure_of(at(cache, PUBLIC)))
        assert caught.value.paths == (str(PUBLIC.path),)


async def test_two_images_at_once_pack_a_path_once(tmp_path: Path) -> None:
    async with wired(tmp_path) as its:
        one, *_ = private(its.own)
        await asyncio.gather(*(its.offer(closure_of(one)) for _ in range(5)))
        assert sum(name.startswith("nar/") for name in its.own.files.written) == 1


async def test_one_of_two_images_is_given_up(tmp_path: Path) -> None:
    async with wired(tmp_path) as its:
        one, *_ = private(its.own)
        first, second = (asyncio.ensure_future(its.offer(closure_of(one))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert its.own.published == {"one"}


# --- closure-info paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
async def test_closure_info_is_published_with_the_image(tmp_path: Path, named: bool) -> None:
    async with serving(PUBLIC) as cache, wired(tmp_path, cache, names_closure_info=named) as its:
        closure = closure_of(*private(its.own), at(cache, PUBLIC))
        path = its.publisher.closure_info(closure)
        assert path == (closure_info(closure)[0].path if named else None)
        for _ in range(2):
            await its.offer(closure)
        expected = {"one", "two", "three"} | ({"closure-info"} if named else set())
        assert its.own.published == expected
        if path is not None:
            narinfo = its.own.narinfo(path.hash_part)
            assert narinfo.info.references == tuple(closure)
            [last] = [name for name in its.own.files.written if name.startswith(path.hash_part)][-1:]
            assert its.own.files.written[-1] == last == f"{path.hash_part}.narinfo"
            assert its.own.files.written.count(last) == 1
