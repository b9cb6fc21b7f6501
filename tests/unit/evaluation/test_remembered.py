import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nixery_snap.errors import (
    EvaluationFailed,
    EvaluationTimedOut,
    NixDaemonUnreachable,
    NixError,
    PackageProblem,
    ProblemKind,
)
from nixery_snap.evaluation.remembered import RememberedEvaluator
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.store_path import StorePath
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Package, PackageSet, Pin
from tests.support.waiting import until

OUT = StorePath.parse("/nix/store/00000000000000000000000000000000-x")


def a_set(revision: str, variant: str = "") -> PackageSet:
    return PackageSet(Path("/source"), pin=Pin(revision, variant=variant))


def names(*texts: str) -> list[AttributePath]:
    return list(map(AttributePath.parse, texts))


@dataclass
class Counted:
    """Implements the port Evaluator; counts what is asked. `bad…` has a problem, `slow…` stops everything."""

    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    calls: int = 0
    error: NixError | None = None
    gate: asyncio.Event | None = None

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        self.calls += 1
        revision = package_set.pin.revision + package_set.pin.variant if package_set.pin else ""
        self.asked.update((revision, system, str(name)) for name in names)
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        if any(str(name).startswith("slow") for name in names):
            raise EvaluationTimedOut(1)
        if self.error:
            raise self.error
        return [
            PackageProblem(str(name), ProblemKind.FAILED, "bad")
            if str(name).startswith("bad")
            else Package(name, f"{name}-{revision}-{system}", str(OUT), {"out": OUT}, None, (), 5)
            for name in names
        ]


def records() -> StoredRecords:
    return StoredRecords(ObjectStore("memory://"), 2**20)


async def texts(evaluator: RememberedEvaluator, package_set: PackageSet, *asked: str) -> list[str]:
    results = await evaluator.evaluate(package_set, "s", names(*asked))
    return [result.name if isinstance(result, Package) else "problem" for result in results]


async def test_each_is_evaluated_once_under_load() -> None:
    counted = Counted()
    evaluator = RememberedEvaluator(counted, records(), 60)
    packages = [f"p{number}" for number in range(20)] + ["bad1", "bad2"]
    asked: set[tuple[str, str, str]] = set()

    async def client(number: int) -> None:
        revision, system = f"r{number % 3}", f"system-{number % 2}"
        some = [packages[(number * step) % len(packages)] for step in (1, 3, 5, 7)]
        asked.update((revision, system, name) for name in some)
        for _ in range(number % 5):
            await asyncio.sleep(0)
        results = await evaluator.evaluate(a_set(revision), system, names(*some))
        assert [
            getattr(result, "attribute", None) or AttributePath.parse(result.name) for result in results
        ] == names(*some)
        assert {result.name for result in results if isinstance(result, Package)} == {
            f"{name}-{revision}-{system}" for name in some if not name.startswith("bad")
        }

    await asyncio.gather(*map(client, range(200)))
    assert set(counted.asked) == asked
    assert set(counted.asked.values()) == {1}


async def test_only_what_is_new() -> None:
    counted = Counted()
    evaluator = RememberedEvaluator(counted, records(), 60)
    await texts(evaluator, a_set("r"), "git")
    assert await texts(evaluator, a_set("r"), "bash", "git", "bash") == ["bash-r-s", "git-r-s", "bash-r-s"]
    assert counted.asked == {("r", "s", "git"): 1, ("r", "s", "bash"): 1}


async def test_what_is_another_package() -> None:
    counted = Counted()
    evaluator = RememberedEvaluator(counted, records(), 60)
    for package_set, system, name in (
        (a_set("r"), "s", "a.b"),
        (a_set("r", "overlays"), "s", "a.b"),
        (a_set("r2"), "s", "a.b"),
        (a_set("r"), "s2", "a.b"),
        (a_set("r"), "s", '"a.b"'),
    ):
        await evaluator.evaluate(package_set, system, names(name))
    assert counted.calls == 5


async def test_another_replica_knows() -> None:
    shared, counted = records(), Counted()
    first, second = (RememberedEvaluator(counted, shared, 60) for _ in range(2))
    package = await first.evaluate(a_set("r"), "s", names("git", "bad"))
    assert await second.evaluate(a_set("r"), "s", names("git")) == package[:1]
    assert counted.calls == 1
    await texts(second, a_set("r"), "bad")
    assert counted.calls == 2, "what is wrong today is not wrong for ever"


async def test_without_a_pin_nothing_is_known() -> None:
    counted = Counted()
    evaluator = RememberedEvaluator(counted, records(), 60)
    await texts(evaluator, a_set("r"), "git")
    for _ in range(2):
        await texts(evaluator, PackageSet(Path("/source")), "git")
    assert counted.calls == 3


async def test_problems_are_remembered_for_a_while() -> None:
    counted = Counted()
    for seconds, calls in ((60, 1), (0, 3)):
        counted.calls = 0
        evaluator = RememberedEvaluator(counted, records(), seconds)
        for _ in range(3):
            assert await texts(evaluator, a_set("r"), "bad") == ["problem"]
        assert counted.calls == calls


async def test_a_broken_set_is_remembered_for_a_while() -> None:
    counted = Counted(error=EvaluationFailed("syntax error"))
    evaluator = RememberedEvaluator(counted, records(), 60)
    for name in ("a", "b", "a"):
        with pytest.raises(EvaluationFailed, match="syntax"):
            await texts(evaluator, a_set("r"), name)
    assert counted.calls == 1
    with pytest.raises(EvaluationFailed):
        await texts(evaluator, a_set("r2"), "a")
    assert counted.calls == 2


async def test_what_is_wrong_with_the_machine_is_not_remembered() -> None:
    counted = Counted(error=NixDaemonUnreachable("gone"))
    evaluator = RememberedEvaluator(counted, records(), 60)
    with pytest.raises(NixDaemonUnreachable):
        await texts(evaluator, a_set("r"), "a")
    counted.error = None
    assert await texts(evaluator, a_set("r"), "a") == ["a-r-s"]


async def test_what_is_too_slow_is_remembered_by_its_name() -> None:
    counted = Counted()
    evaluator = RememberedEvaluator(counted, records(), 60)
    for _ in range(2):
        with pytest.raises(EvaluationTimedOut):
            await texts(evaluator, a_set("r"), "slow", "git")
    assert counted.calls == 2, "nobody knows which of the two it is"
    assert await texts(evaluator, a_set("r"), "git") == ["git-r-s"]
    for _ in range(2):
        with pytest.raises(EvaluationTimedOut):
            await texts(evaluator, a_set("r"), "slow", "git")
    assert counted.calls == 4


async def test_another_requests_trouble() -> None:
    counted = Counted(gate=asyncio.Event())
    evaluator = RememberedEvaluator(counted, records(), 60)
    troubled = asyncio.create_task(texts(evaluator, a_set("r"), "git", "slow"))
    await until(lambda: counted.calls >= 1)
    others = [asyncio.create_task(texts(evaluator, a_set("r"), "git", "bash")) for _ in range(10)]
    await until(lambda: counted.calls >= 2)
    assert counted.gate
    counted.gate.set()
    assert await asyncio.gather(*others) == [["git-r-s", "bash-r-s"]] * 10
    with pytest.raises(EvaluationTimedOut):
        await troubled
    assert counted.asked == {("r", "s", "git"): 2, ("r", "s", "slow"): 1, ("r", "s", "bash"): 1}


async def test_who_gives_up_ends_no_work() -> None:
    counted = Counted(gate=asyncio.Event())
    evaluator = RememberedEvaluator(counted, records(), 60)
    first, second = (asyncio.create_task(texts(evaluator, a_set("r"), "git")) for _ in range(2))
    await until(lambda: counted.calls >= 1)
    first.cancel()
    await asyncio.sleep(0.01)
    assert counted.gate
    counted.gate.set()
    assert await second == ["git-r-s"]
    assert counted.calls == 1


async def test_a_record_of_another_version() -> None:
    shared, counted = records(), Counted()
    await texts(RememberedEvaluator(counted, shared, 60), a_set("r"), "git")

    class Odd(StoredRecords):
        async def get(self, kind: str, key: str) -> object:
            return {"attribute": ["git"]}

    evaluator = RememberedEvaluator(counted, Odd(ObjectStore("memory://"), 1), 60)
    assert await texts(evaluator, a_set("r"), "git") == ["git-r-s"]
    assert counted.calls == 2


async def test_no_names() -> None:
    counted = Counted()
    assert list(await RememberedEvaluator(counted, records(), 60).evaluate(a_set("r"), "s", [])) == []
