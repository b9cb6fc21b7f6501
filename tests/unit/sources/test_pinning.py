"""What is remembered for how long. The source here says what it is told to; real ones are tried in integration/."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from nixery_snap.errors import NixerySnapError, SourceError, StorageError, TagNotFound
from nixery_snap.object_store.pins import StoredPins
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import PackageSet, Pin, PinStore
from nixery_snap.sources.pinning import Pinned

A, B = Pin("a" * 40), Pin("b" * 40)
TTL, STALE = 300, 3600


@dataclass
class Told:
    """A source whose answers the test changes; each waits for `gate`."""

    means: dict[str, Pin | NixerySnapError] = field(default_factory=lambda: {"main": A})
    listed: Sequence[str] | NixerySnapError = ("main",)
    name: str = "told"
    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    waiting: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def ask(self, what: str) -> None:
        self.asked.append(what)
        if not self.gate.is_set():
            self.waiting += 1
            await self.gate.wait()
            self.waiting -= 1

    async def pin(self, tag: str) -> Pin:
        await self.ask(tag)
        found = self.means.get(tag, TagNotFound(self.name, tag, "no"))
        if isinstance(found, NixerySnapError):
            raise found
        return found

    def current(self, tag: str) -> Pin | None:
        return Pin(tag) if len(tag) == 40 else None

    async def checkout(self, pin: Pin) -> PackageSet:
        return PackageSet(Path("/"), pin=pin)

    async def tags(self) -> Sequence[str]:
        await self.ask("tags")
        if isinstance(self.listed, NixerySnapError):
            raise self.listed
        return self.listed

    def close(self) -> None:
        self.asked.append("close")


@dataclass
class Setting:
    told: Told = field(default_factory=Told)
    store: ObjectStore = field(default_factory=lambda: ObjectStore("memory://"))
    time: float = 1_000_000

    def pinned(self, pins: PinStore | None = None) -> Pinned:
        """A process of its own on the same store."""
        return Pinned(self.told, pins or StoredPins(self.store), TTL, STALE, lambda: self.time)


@pytest.fixture
async def setting() -> Setting:
    return Setting()


async def settled(pinned: Pinned) -> None:
    """Until nothing goes on, or what goes on waits for the gate."""
    for _ in range(12_000):
        told = pinned._source
        assert isinstance(told, Told)
        if not pinned._tasks or told.waiting:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it goes on and on")


async def begun(pinned: Pinned) -> None:
    """Until the source is being asked."""
    for _ in range(12_000):
        if pinned._tasks:
            break
        await asyncio.sleep(0.005)
    await settled(pinned)


async def test_young(setting: Setting) -> None:
    pinned = setting.pinned()
    assert pinned.current("main") is None
    assert await pinned.pin("main") == A
    setting.told.means["main"] = B
    setting.time += TTL - 1
    assert pinned.current("main") == await pinned.pin("main") == A
    assert setting.told.asked == ["main"]


async def test_stale_is_served_while_it_is_renewed(setting: Setting) -> None:
    pinned = setting.pinned()
    await pinned.pin("main")
    setting.told.means["main"] = B
    setting.told.gate.clear()
    setting.time += TTL + STALE - 1
    assert [pinned.current("main") for _ in range(100)] == [A] * 100
    assert await pinned.pin("main") == A
    await settled(pinned)
    assert setting.told.asked == ["main"] * 2, "asked once by all of them"
    setting.told.gate.set()
    await asyncio.sleep(0)
    await settled(pinned)
    assert pinned.current("main") == B


async def test_too_old_is_waited_for(setting: Setting) -> None:
    pinned = setting.pinned()
    await pinned.pin("main")
    setting.told.means["main"] = B
    setting.time += TTL + STALE
    assert pinned.current("main") is None
    assert await pinned.pin("main") == B


async def test_requests_at_the_same_time_ask_once(setting: Setting) -> None:
    pinned = setting.pinned()
    assert await asyncio.gather(*(pinned.pin("main") for _ in range(100))) == [A] * 100
    assert setting.told.asked == ["main"]


async def test_a_client_that_leaves_takes_nobody_along(setting: Setting) -> None:
    pinned = setting.pinned()
    setting.told.gate.clear()
    first, second = (asyncio.create_task(pinned.pin("main")) for _ in range(2))
    await begun(pinned)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    setting.told.gate.set()
    assert await second == A
    assert setting.told.asked == ["main"]


async def test_offline(setting: Setting) -> None:
    pinned = setting.pinned()
    await pinned.pin("main")
    setting.told.means["main"] = SourceError("unplugged")
    setting.time += 10 * STALE
    with structlog.testing.capture_logs() as logs:
        assert await pinned.pin("main") == A
    assert [(line["event"], line["log_level"]) for line in logs] == [("old-pin-served", "warning")]
    asked = len(setting.told.asked)
    setting.time += 29
    assert pinned.current("main") == A, "the source is left alone for a while"
    assert len(setting.told.asked) == asked
    setting.time += 1
    assert pinned.current("main") is None
    setting.told.means["main"] = B
    assert await pinned.pin("main") == B


async def test_offline_in_the_background(setting: Setting) -> None:
    pinned = setting.pinned()
    await pinned.pin("main")
    setting.told.means["main"] = SourceError("unplugged")
    setting.time += TTL
    for _ in range(10):
        assert pinned.current("main") == A
        await settled(pinned)
    assert len(setting.told.asked) == 2


async def test_offline_from_the_start(setting: Setting) -> None:
    setting.told.means["main"] = SourceError("unplugged")
    with pytest.raises(SourceError, match="unplugged"):
        await setting.pinned().pin("main")


async def test_a_tag_that_is_deleted(setting: Setting) -> None:
    pinned = setting.pinned()
    await pinned.pin("main")
    del setting.told.means["main"]
    setting.time += TTL
    assert pinned.current("main") == A
    await settled(pinned)
    assert pinned.current("main") is None
    for process in (pinned, setting.pinned()):
        with pytest.raises(TagNotFound):
            await process.pin("main")


async def test_strangers_cannot_make_it_ask_all_the_time(setting: Setting) -> None:
    pinned = setting.pinned()
    for _ in range(10):
        with pytest.raises(TagNotFound):
            await pinned.pin("nothing")
    assert setting.told.asked == ["nothing"]


async def test_what_is_remembered_is_bounded(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery_snap.sources.pinning._REMEMBERED_TAGS", 100)
    pinned = setting.pinned()
    for number in range(200):
        setting.told.means[f"t{number}"] = A
        await pinned.pin(f"t{number}")
    assert len(pinned._known) == 100
    assert pinned.current("t199") == A
    assert pinned._tasks == {}


async def test_replicas_and_restarts_share_pins(setting: Setting) -> None:
    first = setting.pinned()
    await first.pin("main")
    setting.told.means["main"] = B
    setting.time += TTL - 1
    second = setting.pinned()
    assert await second.pin("main") == A
    assert setting.told.asked == ["main"]
    setting.time += 2
    assert await second.pin("main") == A
    await settled(second)
    assert second.current("main") == B
    assert setting.told.asked == ["main"] * 2
    assert first.current("main") == A
    await settled(first)
    assert first.current("main") == B
    assert setting.told.asked == ["main"] * 2, "the other one had asked"


async def test_a_clock_that_is_ahead(setting: Setting) -> None:
    await StoredPins(setting.store).put("told", "main", A, setting.time * 2)
    pinned = setting.pinned()
    assert await pinned.pin("main") == A
    setting.told.means["main"] = B
    setting.time += TTL + STALE
    assert await pinned.pin("main") == A or pinned.current("main") is not None


class Broken(StoredPins):
    """A store whose disk is full."""

    async def get(self, source: str, tag: str) -> tuple[Pin, float] | None:
        raise StorageError("full")

    async def put(self, source: str, tag: str, pin: Pin, made: float) -> None:
        raise StorageError("full")

    async def delete(self, source: str, tag: str) -> None:
        raise StorageError("full")


async def test_without_the_store_it_goes_on(setting: Setting) -> None:
    pinned = setting.pinned(Broken(setting.store))
    assert await pinned.pin("main") == A
    del setting.told.means["main"]
    setting.time += TTL + STALE
    with pytest.raises(TagNotFound):
        await pinned.pin("main")


async def test_commits_are_for_ever(setting: Setting) -> None:
    pinned = setting.pinned()
    assert pinned.current("c" * 40) == await pinned.pin("c" * 40) == Pin("c" * 40)
    assert setting.told.asked == []


async def test_tags(setting: Setting) -> None:
    pinned = setting.pinned()
    found = await asyncio.gather(*(pinned.tags() for _ in range(10)))
    assert found == [("main",)] * 10
    setting.told.listed = ("main", "new")
    setting.time += TTL
    assert await pinned.tags() == ("main",)
    await settled(pinned)
    assert await pinned.tags() == ("main", "new")
    assert setting.told.asked == ["tags"] * 2
    setting.told.listed = SourceError("unplugged")
    setting.time += TTL + STALE
    assert await pinned.tags() == ("main", "new")
    with pytest.raises(SourceError):
        await setting.pinned().tags()


async def test_close_ends_what_goes_on(setting: Setting) -> None:
    pinned = setting.pinned()
    setting.told.gate.clear()
    waiting = asyncio.create_task(pinned.pin("main"))
    await begun(pinned)
    pinned.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert setting.told.asked[-1] == "close"


async def test_a_clock_that_is_set_back(setting: Setting) -> None:
    """What was known before is looked for again, instead of being kept until the clock comes there again."""
    pinned = setting.pinned()
    assert await pinned.pin("main") == A
    setting.told.means["main"] = B
    setting.time -= 10 * STALE
    assert pinned.current("main") is None
    assert await pinned.pin("main") == B
    setting.told.means["main"] = A
    setting.time += TTL - 1
    assert await pinned.pin("main") == B
