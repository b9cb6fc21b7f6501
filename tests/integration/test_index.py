"""The index of a real package set: it says what Nix says, is made piece by piece, and needs no Nix to be read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nixery_snap.errors import EvaluationFailed, NixMissing, PackageProblem, ProblemKind
from nixery_snap.evaluation import indexing
from nixery_snap.evaluation.index import AttributeIndex, Entry, Indexes
from nixery_snap.evaluation.indexed import Indexed
from nixery_snap.evaluation.indexing import Indexer
from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.evaluation.popularity import popularity
from nixery_snap.evaluation.search import Catalogues
from nixery_snap.imaging.assemble import Assembler
from nixery_snap.imaging.layers import LayerMaker
from nixery_snap.imaging.locate import find_closure
from nixery_snap.imaging.request import ImageFormat, NameGrammar
from nixery_snap.imaging.resolution import Resolution
from nixery_snap.imaging.validate import validate
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.drv_name import without_version
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.nix_stores.local_store import StoreDatabase
from nixery_snap.nix_stores.substituted_contents import SubstitutedContents
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Evaluator, Package, PackageSet, Pin, Program
from tests.contract.conftest import substituters_of
from tests.integration.caches import CacheDirectory
from tests.integration.nixtools import ENDLESS, EXAMPLES, ChrootStore

SYSTEM = "x86_64-linux"
PIN = Pin("1" * 64)
OPTIONS = {"sandbox": "false", "substituters": ""}


@dataclass
class Counted:
    """An evaluator that counts what it is asked for, and is broken after `left` questions."""

    evaluator: Evaluator
    left: int = 10**9
    asked: list[tuple[str, ...]] = field(default_factory=list)

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        self.left -= 1
        if self.left < 0:
            raise OSError("broken")
        self.asked += [name.parts for name in names]
        return await self.evaluator.evaluate(package_set, system, names)


class Bench:
    """Everything around one store of Nix and one object store."""

    def __init__(self, directory: Path, store: ChrootStore, *, timeout_seconds: float = 60) -> None:
        self.directory, self.store, self.timeout_seconds = directory, store, timeout_seconds
        self.objects = ObjectStore("memory://")
        self.blobs = Blobs(self.objects)
        self.records = StoredRecords(self.objects, 2**20)
        self.indexes = Indexes(self.blobs, self.records)
        self.start()

    def start(self) -> None:
        """Anew, in the environment as it is now."""
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        self.nix = NixCommand(NixStore.parse(str(self.store.root)), home, OPTIONS)
        self.evaluator = Counted(OneShotEvaluator(self.nix, self.timeout_seconds, 2, 4096))
        self.indexed = Indexed(self.evaluator, self.indexes, Catalogues(self.indexes))

    def package_set(self, directory: Path) -> PackageSet:
        return PackageSet(directory, pin=PIN)

    async def index(
        self,
        packages: Path | PackageSet,
        attributes: int = 16,
        advance: indexing.Advance = lambda done, total: None,
        processes: int = 2,
    ) -> AttributeIndex:
        indexer = Indexer(
            *(self.nix, self.evaluator, self.blobs, self.records),
            timeout_seconds=self.timeout_seconds,
            memory_mib=4096,
            processes=processes,
            attributes=attributes,
        )
        package_set = self.package_set(packages) if isinstance(packages, Path) else packages
        return await indexer.index(package_set, SYSTEM, advance)


@pytest.fixture
def bench(prepared_store: ChrootStore, tmp_path: Path) -> Bench:
    return Bench(tmp_path, prepared_store)


def written(directory: Path, text: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "default.nix").write_text(text)
    return directory


def name_of(drv_path: str) -> str:
    return without_version(StorePath.parse(drv_path).name.removesuffix(".drv"))


def outcome(result: Package | PackageProblem) -> object:
    """All but what is advice."""
    return result if isinstance(result, Package) else (result.name, result.kind, result.message)


async def test_it_says_what_nix_says(bench: Bench) -> None:
    steps: list[tuple[int, int]] = []
    index = await bench.index(EXAMPLES, advance=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert steps[0][0] == 0
    assert steps[-1][0] == steps[-1][1]
    paths = [entry.path async for entry in index.entries()]
    assert len(paths) == len(set(paths))
    assert {("hello",), ("openssl", "dev"), ("python3Packages", "requests"), ("throws",), ("infinite",)} <= {
        *paths
    }
    assert index.counts["packages"] > 30
    assert index.counts["sets"] >= 1

    names = [AttributePath(path) for path in paths]
    names += [AttributePath(tuple(part.lower().removeprefix("_") for part in path)) for path in paths]
    texts = [
        "helo",
        "python3Packages.reqests",
        "hello.nosuch",
        "openssl.Dev",
        "aString.x",
        "python2Packages.x",
        "OpenSSL",
    ]
    names += map(AttributePath.parse, texts)
    names = list(dict.fromkeys(names))
    package_set = bench.package_set(EXAMPLES)
    bench.evaluator.asked.clear()
    from_index = await bench.indexed.evaluate(package_set, SYSTEM, names)
    # Nix was asked only of what failed, and of what is in packages and in things that are no sets.
    asked = {AttributePath(parts) for parts in bench.evaluator.asked}
    by_name = dict(zip(names, from_index, strict=True))
    assert asked.isdisjoint(name for name, one in by_name.items() if isinstance(one, Package))
    assert len(asked) < len(names) / 5
    by_nix = await bench.evaluator.evaluate(package_set, SYSTEM, names)
    for name, mine, other in zip(names, from_index, by_nix, strict=True):
        if isinstance(other, PackageProblem) and other.kind is ProblemKind.WRONG_KIND:
            assert isinstance(mine, PackageProblem)
            assert (mine.name, mine.kind) == (str(name), other.kind)
        else:
            assert outcome(mine) == outcome(other), name


async def test_near_matches_of_the_whole_set(bench: Bench) -> None:
    await bench.index(EXAMPLES)
    package_set = bench.package_set(EXAMPLES)
    for asked, meant in (("helo", "hello"), ("requests", "python3Packages.requests"), ("7zzz", "_7zz")):
        [problem] = await bench.indexed.evaluate(package_set, SYSTEM, [AttributePath.parse(asked)])
        assert isinstance(problem, PackageProblem)
        assert problem.kind is ProblemKind.MISSING
        assert meant in problem.suggestions


async def test_without_a_pin_nothing_is_remembered(bench: Bench) -> None:
    await bench.index(EXAMPLES)
    bench.evaluator.asked.clear()
    await bench.indexed.evaluate(PackageSet(EXAMPLES), SYSTEM, [AttributePath(("hello",))])
    await bench.indexed.evaluate(bench.package_set(EXAMPLES), "aarch64-linux", [AttributePath(("hello",))])
    assert bench.evaluator.asked == [("hello",)] * 2


async def test_an_index_that_lost_a_part(bench: Bench) -> None:
    await bench.index(EXAMPLES)
    async for key, _ in bench.objects.list("blobs/"):
        await bench.objects.delete(key)
    names = [AttributePath(("hello",)), AttributePath(("helo",))]
    package, problem = await bench.indexed.evaluate(bench.package_set(EXAMPLES), SYSTEM, names)
    assert isinstance(package, Package)
    assert isinstance(problem, PackageProblem)


async def test_an_interrupted_run_goes_on(bench: Bench) -> None:
    bench.evaluator.left = 3
    with pytest.raises(OSError, match="broken"):
        await bench.index(EXAMPLES, 8, processes=1)
    before = list(bench.evaluator.asked)
    assert await bench.indexes.open(PIN, SYSTEM) is None
    bench.evaluator.left = 10**9
    index = await bench.index(EXAMPLES, 8)
    recorded = {entry.path async for entry in index.entries()}
    assert recorded >= set(before)
    twice = [path for path in before if bench.evaluator.asked.count(path) > 1]
    # What was under way when it broke is all that was asked for again.
    assert len(twice) < len(before)
    done = list(bench.evaluator.asked)
    assert (await bench.index(EXAMPLES, 8)).counts == index.counts
    assert bench.evaluator.asked == done


async def test_sets_in_sets(bench: Bench, tmp_path: Path) -> None:
    text = """
      { system, ... }:
      let
        mk = name: derivation { inherit name system; builder = "/bin/sh"; };
        whole = set: set // { recurseForDerivations = true; };
        self = whole { again = self; one = mk "one"; };
      in
      {
        outer = whole { inner = whole { deep = mk "deep"; Deep = mk "capital"; }; };
        closed = { hidden = mk "hidden"; };
        liar = { recurseForDerivations = throw "no"; x = mk "x"; };
        broken = whole (throw "broken set");
        "with \\"quotes" = mk "quotes";
        "a.b" = mk "dots";
        "1st" = mk "first";
        "_2nd" = mk "second";
        inherit self;
        odd = mk "odd" // { outputs = 7; };
        endless = mk "endless" // { outputs = let f = x: f x; in f 1; };
      }
    """
    index = await bench.index(written(tmp_path / "set", text), 2)
    indexed, package_set = bench.indexed, bench.package_set(tmp_path / "set")
    bench.evaluator.asked.clear()
    asked = ["outer.inner.deep", "outer.inner.Deep", '"a.b"', "1st", "2nd", "self.again.again.one", "odd"]
    results = await indexed.evaluate(package_set, SYSTEM, list(map(AttributePath.parse, asked)))
    names = [result.name for result in results if isinstance(result, Package)]
    assert names == ["deep", "capital", "dots", "first", "second", "one", "odd"]
    [missing] = await indexed.evaluate(package_set, SYSTEM, [AttributePath.parse("outer.inner.dep")])
    assert isinstance(missing, PackageProblem)
    assert missing.kind is ProblemKind.MISSING
    assert "outer.inner" in missing.message
    assert bench.evaluator.asked == []
    [hidden] = await indexed.evaluate(package_set, SYSTEM, [AttributePath.parse("closed.hidden")])
    assert isinstance(hidden, Package)
    assert bench.evaluator.asked == [("closed", "hidden")]
    deepest = max([entry.path async for entry in index.entries()], key=len)
    assert len(deepest) == indexing.MAX_DEPTH + 1, "its last name is an output"


async def test_a_flake(bench: Bench, tmp_path: Path) -> None:
    flake = tmp_path / "flake"
    flake.mkdir()
    (flake / "flake.nix").write_text("""
      {
        outputs = { self }:
          let
            mk = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
            nested = { recurseForDerivations = true; deep = mk "deep"; };
          in
          {
            packages.x86_64-linux = { one = mk "one"; both = mk "of-packages"; };
            legacyPackages.x86_64-linux = { two = mk "two"; both = mk "of-legacy"; inherit nested; };
          };
      }
    """)
    package_set = replace(bench.package_set(flake), is_flake=True)
    index = await bench.index(package_set)
    assert index.counts == {"packages": 4, "sets": 1}
    names = [AttributePath.parse(text) for text in ("one", "two", "both", "nested.deep", "both.out")]
    results = await bench.indexed.evaluate(package_set, SYSTEM, names)
    assert results == await bench.evaluator.evaluate(replace(package_set, pin=None), SYSTEM, names)
    assert [one.name for one in results if isinstance(one, Package)] == [
        "one",
        "two",
        "of-legacy",
        "deep",
        "of-legacy",
    ]


async def test_what_never_ends_harms_no_other(
    prepared_store: ChrootStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"""
      {{ system, ... }}: {{
        dies = abort "dead";
        endless = {ENDLESS};
        good = derivation {{ name = "good"; inherit system; builder = "/bin/sh"; }};
      }}
    """
    bench = Bench(tmp_path, prepared_store, timeout_seconds=2)
    run = bench.nix.run

    async def run_patiently(program: str, *arguments: str, timeout_seconds: float, **options: Any) -> Program:
        """What ends by itself has the time that it needs on a slow machine."""
        never_ends = any('"endless"' in argument for argument in arguments)
        return await run(
            program, *arguments, timeout_seconds=timeout_seconds if never_ends else 60, **options
        )

    monkeypatch.setattr(bench.nix, "run", run_patiently)
    index = await bench.index(written(tmp_path / "set", text))
    assert index.counts == {"failed": 2, "packages": 1}
    for name, words in (("dies", "dead"), ("endless", "longer than 2 s")):
        entry = await index.find(AttributePath((name,)))
        assert isinstance(entry, Entry)
        assert isinstance(entry.result, PackageProblem)
        assert words in entry.result.message


async def test_sets_that_cannot_be_indexed(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(EvaluationFailed, match="set is gone"):
        await bench.index(written(tmp_path / "set", "{ }: throw ''set is gone''"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "_MAX_ATTRIBUTES", 10)
        with pytest.raises(EvaluationFailed, match="more than 10 attributes"):
            await bench.index(EXAMPLES)
    assert [key async for key, _ in bench.objects.list("records/index/")] == []


async def test_popularity(bench: Bench, own_store: ChrootStore, tmp_path: Path) -> None:
    directory = tmp_path / "own"
    directory.mkdir()
    bench = Bench(directory, own_store)
    index = await bench.index(EXAMPLES)
    own_store.run("nix-store", "--gc")  # nothing keeps its derivations
    database = StoreDatabase(NixStore.parse(str(own_store.root)).database)
    asked = (index, database, bench.evaluator, bench.package_set(EXAMPLES), SYSTEM)
    counts = await popularity(*asked)
    # The same by Nix's own closures.
    expected: Counter[str] = Counter()
    drvs = {entry.result.drv_path async for entry in index.entries() if isinstance(entry.result, Package)}
    for drv in drvs:
        closure = own_store.run("nix-store", "-qR", drv).split()
        expected.update({name_of(path) for path in closure if path.endswith(".drv")} - {name_of(drv)})
    assert counts == dict(expected)
    assert counts["glibc"] > 1
    assert await popularity(*asked) == counts


async def test_images_without_nix(
    bench: Bench, full_cache: CacheDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the index and a binary cache alone, both formats, on a machine that has no program of Nix's."""
    await bench.index(EXAMPLES)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    bench.start()
    with pytest.raises(NixMissing):
        await bench.nix.run("nix-instantiate", "--version")

    substituters = substituters_of(full_cache)
    try:
        contents = SubstitutedContents(substituters, bench.records, asyncio.get_running_loop())
        grammar = NameGrammar(ImageFormat.CLASSIC, (SYSTEM,), {})
        for name in ("hello/openssl.dev/python3packages.requests", "nix-snapshotter/hello/curl"):
            request = grammar.parse(name)
            results = await bench.indexed.evaluate(bench.package_set(EXAMPLES), SYSTEM, request.names)
            resolution = Resolution.of(dict(zip(request.names, results, strict=True)), request.names)
            closure = await find_closure(substituters, resolution.outputs)
            layers = LayerMaker(contents, bench.blobs, bench.records)
            manifest = await Assembler(contents, bench.blobs, layers, 100).assemble(
                request, PIN, resolution, closure
            )
            digest = await bench.blobs.put(bytes(manifest))
            await asyncio.to_thread(validate, digest, bench.blobs.read)
    finally:
        await substituters.close()
    assert bench.evaluator.asked == []

    names = [AttributePath.parse(text) for text in ("hello", "hello.nosuch", "throws", "helo")]
    hello, inside, throws, helo = await bench.indexed.evaluate(bench.package_set(EXAMPLES), SYSTEM, names)
    assert isinstance(hello, Package)
    for problem, kind, words in (
        (inside, ProblemKind.MISSING, "without Nix"),
        (throws, ProblemKind.FAILED, "throws has been removed, use hello"),
        (helo, ProblemKind.MISSING, "no package helo"),
    ):
        assert isinstance(problem, PackageProblem)
        assert problem.kind is kind
        assert words in problem.message
