"""Leases over every backend: whoever waits comes after whoever works, and nobody waits for the dead for long."""

import asyncio
import json
import subprocess

import pytest

from nixery_snap.object_store import keys
from nixery_snap.object_store.leases import StoredLeases
from nixery_snap.object_store.store import ObjectStore

ELSEWHERE = b'{"machine": "another", "pid": 1, "sign": "x", "started": "1"}'


@pytest.fixture
def store(storage_url: str) -> ObjectStore:
    return ObjectStore(storage_url)


class Work:
    """Notes who is at it, and how many at a time. With `until_waited_for` nobody ends before."""

    def __init__(
        self, leases: StoredLeases, seconds: float = 0.02, *, until_waited_for: bool = False
    ) -> None:
        self.leases, self.seconds, self.until_waited_for = leases, seconds, until_waited_for
        self.running = self.most = self.done = 0
        self.waited_for, self.begun = asyncio.Event(), asyncio.Event()

    async def once(self, key: str = "key") -> None:
        async with self.leases.held(key, lambda _line: self.waited_for.set()):
            self.begun.set()
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(self.seconds)
            if self.until_waited_for:
                await self.waited_for.wait()
            self.running -= 1
            self.done += 1


async def leftovers(store: ObjectStore) -> list[str]:
    return [key async for key, _ in store.list("leases")]


async def test_one_at_a_time(store: ObjectStore) -> None:
    work = Work(StoredLeases(store, 60), until_waited_for=True)
    await asyncio.gather(*(work.once() for _ in range(4)))
    assert (work.most, work.done) == (1, 4)
    assert await leftovers(store) == []


async def test_keys_do_not_wait_for_each_other(store: ObjectStore) -> None:
    leases = StoredLeases(store, 60)
    async with leases.held("one", print), leases.held("two", print):
        assert sorted(await leftovers(store)) == ["leases/one.0", "leases/two.0"]


async def test_given_up_when_the_work_fails(store: ObjectStore) -> None:
    leases = StoredLeases(store, 60)
    with pytest.raises(ZeroDivisionError):
        async with leases.held("key", print):
            raise ZeroDivisionError
    assert await leftovers(store) == []
    await Work(leases).once()


async def test_given_up_when_the_work_is_cancelled(store: ObjectStore) -> None:
    leases = StoredLeases(store, 60)
    work = Work(leases, seconds=60)
    working = asyncio.create_task(work.once())
    await work.begun.wait()
    assert await leftovers(store)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert await leftovers(store) == []
    await Work(leases).once()


async def test_a_holder_that_gives_no_sign_of_life(store: ObjectStore) -> None:
    """One of those who wait takes over, and the others wait for that one."""
    await store.put(keys.lease("key", 0), ELSEWHERE)
    work = Work(StoredLeases(store, 3))  # shorter, and a slow backend could make a new holder seem dead too
    await asyncio.gather(*(work.once() for _ in range(3)))
    assert (work.most, work.done) == (1, 3)
    assert await leftovers(store) == []


async def test_a_holder_that_gives_signs_of_life() -> None:
    """However long it takes: here three times the lease."""
    leases = StoredLeases(ObjectStore("memory://"), 1.5)
    slow, other = Work(leases, seconds=4.5), Work(leases)
    working = asyncio.create_task(slow.once())
    await slow.begun.wait()
    await other.once()
    assert slow.done == 1
    await working


async def test_the_dead_of_this_machine_hold_nothing(store: ObjectStore) -> None:
    """Nobody waits for the lease's time, which would be for ever."""
    leases = StoredLeases(store, 1e9)
    process = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 - it starts and is killed at once
    async with leases.held("key", print):
        content = await store.get(keys.lease("key", 0))
    life = json.loads(content or b"")
    life["pid"] = process.pid
    process.kill()
    process.wait()
    await store.put(keys.lease("key", 0), json.dumps(life).encode())
    await Work(leases).once()
    # Its id may have become another's.
    life["pid"], life["started"] = 1, "x"
    await store.put(keys.lease("key", 0), json.dumps(life).encode())
    await Work(leases).once()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"machine": 1, "pid": "x"}'])
async def test_damaged_leases_end_too(store: ObjectStore, content: bytes) -> None:
    await store.put(keys.lease("key", 0), content)
    await Work(StoredLeases(store, 0.2)).once()
    assert await leftovers(store) == []
