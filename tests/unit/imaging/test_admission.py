import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nixery_snap.errors import TooManyRequests
from nixery_snap.imaging.admission import CLIENT, BuildQueue, ClientLimit, FairEvaluator
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import PackageSet


def test_a_client_has_its_share() -> None:
    limit = ClientLimit(2)
    limit.begin("a")
    limit.begin("a")
    for _ in range(3):
        with pytest.raises(TooManyRequests, match="2 images"):
            limit.begin("a")
    limit.begin("b")
    limit.end("a")
    limit.begin("a")


class Builds:
    """Builds that run until they are told to end."""

    def __init__(self, queue: BuildQueue) -> None:
        self._queue = queue
        self.running: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    def begin(self, name: str, is_wanted: Callable[[], bool] = lambda: True) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()

        async def build() -> None:
            async with self._queue.turn(is_wanted):
                self.running.append(name)
                await self._ends[name].wait()
            self.running.remove(name)

        return asyncio.ensure_future(build())

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def long_settle() -> None:
    """Turns of the loop, and not seconds: those may pass within one turn."""
    for _ in range(10):
        await settle()


async def test_so_many_at_a_time_in_their_order() -> None:
    builds = Builds(BuildQueue(2, 10))
    tasks = [builds.begin(name) for name in "abcd"]
    await settle()
    assert builds.running == ["a", "b"]
    await builds.end("b")
    assert builds.running == ["a", "c"]
    await builds.end("a")
    assert builds.running == ["c", "d"]
    for name in "cd":
        await builds.end(name)
    await asyncio.gather(*tasks)


async def test_who_is_still_waited_for_comes_first() -> None:
    builds = Builds(BuildQueue(1, 10))
    abandoned = {"b"}
    tasks = [builds.begin(name, lambda name=name: name not in abandoned) for name in "abc"]  # type: ignore[misc] # mypy#12557
    await settle()
    await builds.end("a")
    assert builds.running == ["c"]
    await builds.end("c")
    assert builds.running == ["b"], "it is built all the same"
    await builds.end("b")
    await asyncio.gather(*tasks)


async def test_the_queue_has_an_end() -> None:
    builds = Builds(BuildQueue(1, 1))
    tasks = [builds.begin(name) for name in "ab"]
    await settle()
    with pytest.raises(TooManyRequests, match="1 builds are waiting"):
        await builds.begin("c")
    for name in "ab":
        await builds.end(name)
    await asyncio.gather(*tasks)


async def test_all_given_up_at_once() -> None:
    """As at shutdown: whoever ends passes its turn on to nobody who is gone."""
    builds = Builds(BuildQueue(1, 10))
    tasks = [builds.begin(name) for name in "abc"]
    await settle()
    for task in tasks:
        task.cancel()
    assert [type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 3
    last = builds.begin("d")
    await settle()
    assert builds.running[-1] == "d"
    await builds.end("d")
    await last


async def test_given_up_while_waiting() -> None:
    """Also in the moment in which its turn has come: no turn is lost."""
    builds = Builds(BuildQueue(1, 10))
    first, second, third = (builds.begin(name) for name in "abc")
    await settle()
    second.cancel()
    await settle()
    fourth = builds.begin("d")
    await settle()
    builds._ends["a"].set()
    await asyncio.sleep(0)  # "a" has ended and passed its turn on to "c", which has not run yet
    third.cancel()
    await settle()
    assert builds.running == ["d"]
    await builds.end("d")
    await asyncio.gather(first, fourth)
    last = builds.begin("e")
    await settle()
    assert builds.running == ["e"]
    await builds.end("e")
    await last


class Evaluations:
    """Implements the port Evaluator: each goes on until it is let go."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.go = asyncio.Semaphore(0)

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> list[Any]:
        self.running.append(system)
        await self.go.acquire()
        self.running.remove(system)
        return []


async def test_who_has_much_to_evaluate_holds_up_nobody_else() -> None:
    evaluations = Evaluations()
    fair = FairEvaluator(evaluations, 2)

    async def evaluate(client: str, name: str) -> None:
        CLIENT.set(client)
        await asyncio.create_task(
            fair.evaluate(PackageSet(Path("/x")), name, [])
        )  # of tasks that it begins, too

    tasks = [asyncio.create_task(evaluate("a", f"a{number}")) for number in range(10)]
    await long_settle()
    tasks.append(asyncio.create_task(evaluate("b", "b")))
    await long_settle()
    assert evaluations.running == ["a0", "a1", "b"]
    tasks[2].cancel()
    for _ in range(3):
        evaluations.go.release()
    await long_settle()
    assert evaluations.running == ["a3", "a4"]
    for _ in tasks:
        evaluations.go.release()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert evaluations.running == []
