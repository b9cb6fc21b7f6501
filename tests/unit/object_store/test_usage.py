import asyncio
from pathlib import Path

import pytest

from nixery_snap.errors import StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.leases import StoredLeases
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweeps import Hold, Marker, State, Sweeps, announced
from nixery_snap.object_store.usage import StoredUses
from tests.stored import names
from tests.support.waiting import until

PACE = 0.2
DAY = 86400


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore("memory://")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sweeps(store: ObjectStore, clock: Clock) -> Sweeps:
    return Sweeps(store, PACE, clock)


@pytest.fixture
async def uses(store: ObjectStore, sweeps: Sweeps) -> StoredUses:
    return StoredUses(store, sweeps, DAY, DAY)


async def say(store: ObjectStore, state: State, sweep: str = "a", beat: int = 0) -> None:
    await store.put(keys.SWEEP, bytes(Marker(sweep, state, beat)))


async def journals(store: ObjectStore) -> list[list[str]]:
    found = [
        await store.get(name) for name in sorted(await names(store, keys.USAGE)) if name != keys.USAGE_BEGIN
    ]
    return [(content or b"").decode().split() for content in found]


async def written(store: ObjectStore, count: int) -> None:
    while len(await journals(store)) < count:  # noqa: ASYNC110 - of a store, which tells nobody
        await asyncio.sleep(0.01)


async def test_what_is_trusted(store: ObjectStore, sweeps: Sweeps, clock: Clock) -> None:
    forgotten: list[str] = []
    sweeps.forget.append(lambda: forgotten.append("all"))
    assert not sweeps.trusted()  # nothing has been read yet
    await sweeps.read()
    assert sweeps.trusted()
    for state, trusted in ((State.ANNOUNCED, False), (State.SWEEPING, False), (State.DONE, True)):
        forgotten.clear()
        before = sweeps.trusted()
        await say(store, state)
        await sweeps.read()
        assert sweeps.trusted() is trusted
        assert bool(forgotten) is (before != trusted)
    await say(store, State.DONE, "a whole one that was not seen")
    forgotten.clear()
    await sweeps.read()
    assert sweeps.trusted()
    assert forgotten


async def test_nothing_is_trusted_that_is_not_looked_at(sweeps: Sweeps, clock: Clock) -> None:
    """The process was stopped, or the store did not answer."""
    await sweeps.read()
    forgotten: list[bool] = []
    sweeps.forget.append(lambda: forgotten.append(True))
    clock.now += PACE * 0.9
    assert sweeps.trusted()
    clock.now += PACE * 0.2
    assert not sweeps.trusted()
    assert not sweeps.trusted()
    assert len(forgotten) == 1


async def test_a_sweep_that_died_is_over(store: ObjectStore, sweeps: Sweeps, clock: Clock) -> None:
    await say(store, State.SWEEPING)
    assert (await sweeps.read()).state is State.SWEEPING
    clock.now += PACE * 2
    await say(store, State.SWEEPING, beat=1)
    assert (await sweeps.read()).state is State.SWEEPING
    clock.now += PACE * 2
    assert (await sweeps.read()).state is State.SWEEPING
    clock.now += PACE * 1.1
    assert (await sweeps.read()).state is State.DONE
    assert sweeps.trusted()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sweep":"a","state":"odd","beat":1}', b"\xff"])
async def test_a_marker_of_nobody(store: ObjectStore, sweeps: Sweeps, content: bytes) -> None:
    await store.put(keys.SWEEP, content)
    assert (await sweeps.read()).state is State.DONE


async def test_uses_are_written_once_and_together(
    store: ObjectStore, uses: StoredUses, sweeps: Sweeps
) -> None:
    await sweeps.read()
    assert await uses.note("image:a", "manifest:b")
    uses.seen(["path:c"])
    uses.remembers(take_uses=lambda: {"path:d", "image:a"})
    assert await journals(store) == []
    await uses.flush()
    await uses.flush()
    assert await uses.note("image:a")
    await uses.flush()
    assert await journals(store) == [["image:a", "manifest:b", "path:c", "path:d"]]


async def test_uses_are_written_again_on_the_next_day(store: ObjectStore, sweeps: Sweeps) -> None:
    uses = StoredUses(store, sweeps, 0, DAY)
    for _ in range(2):
        uses.seen(["image:a"])
        await uses.flush()
    assert await journals(store) == [["image:a"]] * 2


async def test_while_a_sweep_is_announced_uses_are_written_first(
    store: ObjectStore, uses: StoredUses, sweeps: Sweeps
) -> None:
    await say(store, State.ANNOUNCED)
    await sweeps.read()
    assert not await uses.note("image:a")
    assert await journals(store) == [["image:a"]]
    assert await uses.note("image:a")  # what was seen of it before is right: it was in use
    assert not await uses.note("image:b")


async def test_while_a_sweep_removes_a_use_waits(store: ObjectStore, uses: StoredUses) -> None:
    uses._sweeps._now = lambda: 0.0
    await say(store, State.SWEEPING)
    noting = asyncio.ensure_future(uses.note("image:a"))
    async with asyncio.timeout(60):
        await written(store, 1)
    await asyncio.sleep(PACE)
    assert not noting.done()
    assert await journals(store) == [["image:a"]]
    await say(store, State.DONE)
    assert not await noting


async def test_what_cannot_be_written_is_not_forgotten(
    store: ObjectStore, uses: StoredUses, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(key: str, content: bytes) -> bool:
        raise StorageError("the disk is full")

    uses.seen(["image:a"])
    with monkeypatch.context() as patch:
        patch.setattr(store, "put_if_absent", fail)
        with pytest.raises(StorageError, match="full"):
            await uses.flush()
    await uses.flush()
    assert await journals(store) == [["image:a"]]


async def test_in_the_background(store: ObjectStore) -> None:
    uses = StoredUses(store, Sweeps(store, PACE), DAY, PACE)
    async with asyncio.timeout(60), uses.running():
        await until(uses.trusted)
        uses.seen(["image:a"])
        await written(store, 1)
        await say(store, State.ANNOUNCED)
        await until(lambda: not uses.trusted())
        uses.seen(["image:b"])  # answered from memory just before that was noticed
        await written(store, 2)
        uses.seen(["image:c"])
    assert [line for lines in await journals(store) for line in lines].count("image:c") == 1
    assert await store.exists(keys.USAGE_BEGIN)
    await StoredUses.end(store)
    assert not await store.exists(keys.USAGE_BEGIN)


async def test_settled_changes_with_each_sweep(store: ObjectStore, uses: StoredUses) -> None:
    seen = [await uses.settled()]
    for state in (State.ANNOUNCED, State.DONE):
        await say(store, state)
        seen.append(await uses.settled())
    assert len(set(seen)) == 3
    assert await uses.settled() == seen[-1]


async def test_a_hold_that_others_took(store: ObjectStore) -> None:
    hold = Hold(store, PACE)
    await hold.enter(State.ANNOUNCED)
    await say(store, State.ANNOUNCED, "another")
    with pytest.raises(StorageError, match="another sweep"):
        await hold.enter(State.SWEEPING)
    with pytest.raises(StorageError, match="too slow"):
        hold.check()


async def test_a_hold_without_signs_of_life(store: ObjectStore) -> None:
    hold = Hold(store, 600)
    with pytest.raises(StorageError, match="too slow"):
        hold.check()
    await hold.enter(State.ANNOUNCED)
    hold.check()
    hold._beaten -= 600
    with pytest.raises(StorageError, match="too slow"):
        hold.check()


async def test_a_sweep_waits_for_one_that_may_have_died(store: ObjectStore) -> None:
    await say(store, State.SWEEPING)
    async with announced(store, PACE) as hold:
        await hold.enter(State.SWEEPING)


async def test_a_sweep_does_not_begin_beside_another(store: ObjectStore) -> None:
    async with announced(store, PACE):
        with pytest.raises(StorageError, match="under way"):
            async with announced(store, PACE):
                raise AssertionError


class Late(ObjectStore):
    """What is being written comes to its end even when nobody waits any more, as with threads and servers."""

    seconds = 0.0

    async def put(self, key: str, content: bytes) -> None:
        seconds, self.seconds = self.seconds, 0.0
        self.begun.set()
        await asyncio.shield(asyncio.ensure_future(self._put(key, content, seconds)))

    async def _put(self, key: str, content: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await super().put(key, content)

    async def next_put(self) -> None:
        """Waits until one has begun, which will take a while."""
        self.seconds, self.begun = 0.2, asyncio.Event()
        await self.begun.wait()

    def __init__(self) -> None:
        super().__init__("memory://")
        self.begun = asyncio.Event()


async def test_the_end_of_a_sweep_is_its_last_word() -> None:
    store = Late()
    async with announced(store, PACE) as hold:
        await hold.enter(State.SWEEPING)
        await store.next_put()
    await asyncio.sleep(0.3)
    assert Marker.parse(await store.get(keys.SWEEP) or b"").state is State.DONE


async def test_nothing_is_left_of_a_lease() -> None:
    store = Late()
    async with StoredLeases(store, 0.3).held("key", print):
        await store.next_put()
    await asyncio.sleep(0.3)
    assert [key async for key, _ in store.list("leases")] == []


class ReadOnly(ObjectStore):
    async def put_if_absent(self, key: str, content: bytes) -> bool:
        raise StorageError("read-only file system")


async def test_a_disk_that_cannot_be_written_can_be_served_from(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    await ObjectStore(url).put(keys.USAGE_BEGIN, b"")
    store = ReadOnly(url)
    sweeps = Sweeps(store, 60)
    async with StoredUses(store, sweeps, 100, 100).running():
        await sweeps.read()
        assert sweeps.trusted()
