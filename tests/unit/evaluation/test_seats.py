import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from nixery_snap.evaluation import seats
from nixery_snap.evaluation.seats import Seats


@dataclass(eq=False)
class Thing:
    key: str
    users: int = 0


@dataclass
class Shop:
    """Seats for things that are counted."""

    number: int
    idle_seconds: float = 60
    made: list[Thing] = field(default_factory=list)
    ended: list[Thing] = field(default_factory=list)
    open: bool = True

    def __post_init__(self) -> None:
        self.seats: Seats[Thing] = Seats(self.number, self.idle_seconds, self._end)

    async def _end(self, thing: Thing) -> None:
        assert thing.users == 0, "ended while it is used"
        self.ended.append(thing)

    @property
    def alive(self) -> list[str]:
        return [thing.key for thing in self.made if thing not in self.ended]

    async def use(
        self, key: str, until: Callable[[], object] | asyncio.Event | None = None, *, spoil: bool = False
    ) -> Thing:
        async with self.seats.take(key) as seat:
            if seat.held is None:
                seat.held = Thing(key)
                self.made.append(seat.held)
            thing = seat.held
            assert thing.key == key
            assert thing not in self.ended
            thing.users += 1
            assert thing.users == 1, "used by two at a time"
            try:
                if isinstance(until, asyncio.Event):
                    await until.wait()
                else:
                    await asyncio.sleep(0)
            finally:
                thing.users -= 1
            if spoil:
                self.seats.spoil(seat)
        return thing


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    made = Shop(2)
    yield made
    await made.seats.close()
    assert made.alive == []


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_idle_is_used_again(shop: Shop) -> None:
    assert await shop.use("a") is await shop.use("a")
    assert shop.alive == ["a"]


async def test_one_after_the_other_share_one(shop: Shop) -> None:
    await asyncio.gather(shop.use("a"), shop.use("b"))
    await asyncio.gather(*(shop.use(key) for key in "abababab"))
    assert sorted(shop.alive) == ["a", "b"], "what was idle at the beginning is enough"


async def test_the_one_used_first_makes_room(shop: Shop) -> None:
    for key in "abac":
        await shop.use(key)
    await settle()
    assert sorted(shop.alive) == ["a", "c"]


async def test_a_second_one_only_where_there_is_room(shop: Shop) -> None:
    go = asyncio.Event()
    tasks = [asyncio.create_task(shop.use("a", go)) for _ in range(3)]
    await settle()
    assert shop.alive == ["a", "a"]
    go.set()
    await asyncio.gather(*tasks)
    assert shop.alive == ["a", "a"]


async def test_another_ones_is_not_ended_for_a_second_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "_PATIENCE_SECONDS", 60)
    await shop.use("b")
    go = asyncio.Event()
    tasks = [asyncio.create_task(shop.use("a", go)) for _ in range(2)]
    await settle()
    assert sorted(shop.alive) == ["a", "b"]
    go.set()
    first, second = await asyncio.gather(*tasks)
    assert first is second


async def test_patience_ends(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "_PATIENCE_SECONDS", 0.01)
    await shop.use("b")
    stuck = asyncio.Event()
    first = asyncio.create_task(shop.use("a", stuck))
    await settle()
    await shop.use("a")
    assert not first.done()
    stuck.set()
    await first
    assert sorted(shop.alive) == ["a", "a"]


async def test_nobody_waits_for_ever(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "_PATIENCE_SECONDS", 0.01)
    is_over = False

    async def again_and_again(key: str) -> None:
        while not is_over:
            await shop.use(key)

    busy = [asyncio.create_task(again_and_again(key)) for key in "aabbaabb"]
    async with asyncio.timeout(30):
        await shop.use("c")
    is_over = True
    await asyncio.gather(*busy)


async def test_spoilt(shop: Shop) -> None:
    first = await shop.use("a", spoil=True)
    assert await shop.use("a") is not first
    await settle()
    assert shop.ended == [first]


async def test_who_gives_up_waiting(shop: Shop) -> None:
    go = asyncio.Event()
    holding = [asyncio.create_task(shop.use(key, go)) for key in "ab"]
    waiting = [asyncio.create_task(shop.use("c")) for _ in range(3)]
    await settle()
    waiting[0].cancel()
    await settle()
    go.set()
    waiting[1].cancel()
    await asyncio.gather(*holding, *waiting, return_exceptions=True)
    assert waiting[2].exception() is None
    await asyncio.gather(*map(shop.use, "defg"))


async def test_given_and_given_up_at_once(shop: Shop) -> None:
    go = asyncio.Event()
    holding = [asyncio.create_task(shop.use(key, go)) for key in "ab"]
    waiting = asyncio.create_task(shop.use("a"))
    await settle()
    go.set()
    while shop.seats._waiting:  # noqa: ASYNC110 - that moment has no event
        await asyncio.sleep(0)
    waiting.cancel()  # it has been given a seat, and has not run since
    await asyncio.gather(*holding, waiting, return_exceptions=True)
    async with asyncio.timeout(30):
        await asyncio.gather(*map(shop.use, "abab"))


async def test_idle_for_too_long() -> None:
    shop = Shop(2, idle_seconds=0.01)
    await shop.use("a")
    async with asyncio.timeout(30):
        while shop.alive:  # noqa: ASYNC110 - a timer ends it
            await asyncio.sleep(0.01)
    await shop.use("a")
    await shop.seats.close()


async def test_closing_ends_what_is_in_use(shop: Shop) -> None:
    used, go = asyncio.Event(), asyncio.Event()

    async def hold(key: str) -> None:
        async with shop.seats.take(key) as seat:
            if key == "a":
                seat.held = Thing(key)
                shop.made.append(seat.held)
            used.set()
            await go.wait()
            if seat.held is None:  # a thing made too late
                seat.held = Thing(key)
                shop.made.append(seat.held)

    held = [asyncio.create_task(hold(key)) for key in "ab"]
    await used.wait()
    await shop.seats.close()
    assert shop.alive == []
    go.set()
    await asyncio.gather(*held)
    await settle()
    assert len(shop.ended) == 3


@pytest.mark.parametrize("seed", range(10))
async def test_any_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "_PATIENCE_SECONDS", 0.001)
    shop, chance = Shop(3), random.Random(seed)

    async def client() -> None:
        for _ in range(20):
            task = asyncio.create_task(shop.use(chance.choice("abcde"), spoil=chance.random() < 0.1))
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            if chance.random() < 0.2:
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled() or task.exception() is None
            assert len(shop.seats._idle) + len(shop.seats._busy) <= 3

    async with asyncio.timeout(60):
        await asyncio.gather(*(client() for _ in range(12)))
    await shop.seats.close()
    assert shop.alive == []
