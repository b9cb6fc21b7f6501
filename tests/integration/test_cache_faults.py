"""Binary caches that go wrong: the right image from elsewhere or a clear error, and nothing wrong is kept."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration import misbehaving as wrong
from tests.integration.caches import CacheDirectory, KeyPair, Served, hash_part, nginx
from tests.integration.faults import FAULTS, LIES
from tests.integration.images import ALWAYS_ADDED
from tests.integration.misbehaving import Fault, Kind, Misbehaving, misbehaving
from tests.integration.nixtools import EXAMPLES, NIX_CONFIG, ChrootStore, add_package
from tests.integration.processes import wait_until
from tests.integration.server import Image, Registry, Start, Substituter, serving

# No failed image is remembered, and what was refused is for as long as a test takes.
COMMON = """
limits = { failure_ttl = 0, client_images = 1000 }
nix.wait_timeout = 110
substitution.negative_ttl = 1000
"""
PATIENT = COMMON + "substitution.request_timeout = 60\n"
# For caches that keep everybody waiting; a good one answers in this time on a slow machine too.
IMPATIENT = COMMON + "substitution.request_timeout = 8\nsubstitution.nar_timeout = 15\n"
# Once where Nix by itself tries five times.
HASTY_NIX = {"NIX_CONFIG": f"{NIX_CONFIG}\ndownload-attempts = 1"}
NAME = "shell/curl/symlinkpath/singlefile"
DEAD = "http://127.0.0.1:1"  # a port that no test is given


@dataclass(frozen=True)
class Case:
    """A fault, and the package that it is tried on. `alone`: no other cache has what belongs to the package."""

    kind: Kind
    fault: str
    alone: bool = False

    def __str__(self) -> str:
        return f"{self.kind.name.lower()}: {self.fault}"

    @property
    def package(self) -> str:
        return f"victim-{CASES.index(self)}"

    @property
    def images(self) -> list[str]:
        """By name: both formats, or the one that needs what the fault is about."""
        snapshotter = [] if self.kind is Kind.NAR else [f"nix-snapshotter/{self.package}"]
        return snapshotter if self.kind is Kind.LISTING else [*snapshotter, self.package]


ALONE = {
    Kind.NARINFO: [
        "not found",
        "server error",
        "slow headers",
        "reset",
        "unsigned",
        "10 MB",
        "redirect loop",
    ],
    Kind.NAR: ["not found", "truncated", "one bit", "reset in the body"],
}
CASES = [
    *(Case(kind, fault) for kind, faults in FAULTS.items() for fault in faults),
    *(Case(kind, fault, alone=True) for kind, faults in ALONE.items() for fault in faults),
]


@dataclass
class Trial:
    """One server with a bad cache for each case and a good one behind them all, asked for all images at a time.

    What goes wrong for one image is so much load beside the others, and none may notice.
    """

    server: Registry
    store: ChrootStore
    caches: dict[Case, Misbehaving]
    closures: dict[Case, set[str]]
    """What belongs to a case alone."""
    images: dict[str, Future[Image]]
    expected: dict[str, Future[Image]]
    """From a server that has all paths in its store."""


def add_victims(source: Path) -> None:
    """A package for each case: a directory and what it refers to, which takes several pieces to fetch."""
    for case in CASES:
        add_package(source, f"{case.package}-part", f"{{ seq 60000; echo {case.package}; }} > $out")
        needs = f"echo ${{{case.package}-part}} > $out/share/{case.package}"
        add_package(source, case.package, f"mkdir -p $out/share; {needs}")


def pulled(registry: Registry, name: str) -> Image:
    """However often it takes longer than the server waits."""

    def is_done() -> bool:
        answer = registry.manifest(name)
        return answer.status != 503 or "still being made" not in answer.error["message"]

    wait_until(is_done, seconds=600, what=name)
    return registry.pull(name)


@pytest.fixture(scope="module")
def trial(prepared_store: ChrootStore, scratch: Path) -> Iterator[Trial]:
    home = scratch / "trial"
    source = Path(shutil.copytree(EXAMPLES, home / "packages"))
    add_victims(source)
    built, empty = prepared_store.copy(home / "built"), ChrootStore.create(home / "empty")
    built.build(*(case.package for case in CASES), directory=source)
    installed = built.installed(*((case.package,) for case in CASES), directory=source)
    base = built.closure(path for paths in built.installed(*ALWAYS_ADDED).values() for path in paths)
    closures = {case: built.closure(installed[case.package]) - base for case in CASES}
    everything = CacheDirectory(home / "everything", KeyPair.generate(home / "key", "full-cache-1"))
    everything.publish(built, base.union(*closures.values()))
    elsewhere = [paths for case, paths in closures.items() if not case.alone]
    good = everything.part(home / "good", base.union(*elsewhere))
    with ExitStack() as stack:
        served = stack.enter_context(nginx(good, home / "nginx"))
        caches = {}
        for case, paths in closures.items():
            part = everything.part(home / case.package, paths)
            caches[case] = stack.enter_context(
                misbehaving(part, **{case.kind.name: FAULTS[case.kind][case.fault]})
            )
        reference = stack.enter_context(
            serving(Registry(home / "reference", built.root, source, config=IMPATIENT))
        )
        server = Registry(home / "state", empty.root, source, config=IMPATIENT, env=HASTY_NIX)
        server.substituters = [*(cache.substituter(1) for cache in caches.values()), served.substituter(2)]
        stack.enter_context(serving(server))
        pool = stack.enter_context(ThreadPoolExecutor(len(CASES)))
        names = [name for case in CASES for name in case.images]
        images, expected = (
            {name: pool.submit(pulled, one, name) for name in names} for one in (server, reference)
        )
        yield Trial(server, empty, caches, closures, images, expected)


def check_stored(registry: Registry) -> None:
    """Every blob is what its name says, and no file is left half written."""
    blobs = registry.storage_directory / "blobs"
    for file in blobs.rglob("*"):
        if file.is_file():
            assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name
    staging = registry.storage_directory / "staging"
    # Records are still being written in the background.
    wait_until(
        lambda: not [file for file in staging.rglob("*") if file.is_file()],
        seconds=60,
        what="nothing is left half written",
    )


@pytest.mark.timeout(1200)  # of all images, for whichever case is first
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_file_goes_wrong(trial: Trial, case: Case) -> None:
    """The image is the right one, from another cache or built where no other has its paths."""
    for name in case.images:
        assert trial.images[name].result().manifest == trial.expected[name].result().manifest
    bad, paths = trial.caches[case], trial.closures[case]
    asked = [path for path in bad.requests if Kind.of(path) is case.kind]
    assert asked, bad.requests
    hash_parts = set(map(hash_part, paths))
    events = trial.server.events("path-info-refused")
    refused = [event for event in events if hash_part(event["path"]) in hash_parts]
    assert {event["cache"] for event in refused} <= {bad.url}, "of no other"
    if case.kind is Kind.NARINFO and case.fault in LIES:
        assert refused
        assert all(event["reason"] for event in refused)
    there = trial.store.all_paths() & paths
    assert there == (paths if case.alone else set()), "only what no cache has is built"


@pytest.mark.timeout(1200)
def test_nothing_wrong_is_kept(trial: Trial) -> None:
    assert not [name for name, image in trial.images.items() if image.exception()]
    check_stored(trial.server)


@pytest.fixture
def bad(full_cache: CacheDirectory) -> Iterator[Misbehaving]:
    with misbehaving(full_cache) as cache:
        yield cache


def check_pulls(registry: Registry, reference: Registry, names: list[str]) -> None:
    for name in names:
        assert registry.pull(name).manifest == reference.pull(name).manifest
    assert not registry.events("realised"), "the good cache has everything"
    check_stored(registry)


def test_narinfos_of_other_paths(
    registry: Registry,
    cold: Registry,
    prepared_store: ChrootStore,
    full_cache: CacheDirectory,
    served: Served,
    bad: Misbehaving,
    start: Start,
) -> None:
    """Each of them well signed, but not the answer to the question."""
    [other] = prepared_store.installed(("emptyDir",))["emptyDir"]
    bad.faults[Kind.NARINFO] = wrong.instead(full_cache.narinfo(other).read_bytes())
    cold.config = PATIENT
    cold.substituters = [bad.substituter(1), served.substituter(2)]
    check_pulls(start(cold), registry, [f"nix-snapshotter/{NAME}", NAME])


def test_another_key_of_the_same_name(
    registry: Registry,
    cold: Registry,
    prepared_store: ChrootStore,
    served: Served,
    directory: Path,
    start: Start,
) -> None:
    """Its signatures are well made, by somebody else."""
    stranger = KeyPair.generate(directory / "key", served.cache.key.public.partition(":")[0])
    forged = CacheDirectory(directory / "forged", stranger)
    forged.publish(prepared_store, prepared_store.built_paths())
    with nginx(forged, directory / "nginx-forged") as liar:
        cold.config = PATIENT
        cold.substituters = [
            Substituter(liar.url, [served.cache.key.public], 1),  # it should have this key
            served.substituter(2),
        ]
        check_pulls(start(cold), registry, [f"nix-snapshotter/{NAME}", NAME])
        refused = cold.events("path-info-refused")
        assert refused
        assert all(event["cache"] == liar.url for event in refused)
        assert stranger.public.partition(":")[0] in json.dumps(refused[0]["keys"])
        assert liar.nars() == []


def test_a_key_counts_for_its_own_substituter_alone(
    cold: Registry, served: Served, directory: Path, start: Start
) -> None:
    """That another one is trusted with a key does not make this one trusted."""
    cold.config = PATIENT
    other = KeyPair.generate(directory / "key", "other-1")
    cold.substituters = [
        Substituter(served.url, [other.public], 1),
        Substituter(DEAD, [served.cache.key.public], 2),
    ]
    start(cold).pull("nix-snapshotter/hello")
    assert cold.events("path-info-refused")
    assert cold.events("realised")


def test_caches_that_are_of_no_use_as_a_whole(
    registry: Registry, cold: Registry, full_cache: CacheDirectory, served: Served, start: Start
) -> None:
    """Neither starting nor making images waits for them, and one of another store directory is left alone."""
    infos: dict[str, Fault] = {
        "another store": wrong.instead(b"StoreDir: /gnu/store\nPriority: 1\n"),
        "missing": wrong.status(404),
        "slow": wrong.slow_headers,
        "nonsense": wrong.instead(b"\x00\xff" * 1000),
    }
    dead = Substituter(DEAD, [full_cache.key.public])
    with ExitStack() as stack:
        useless = {
            info: stack.enter_context(misbehaving(full_cache, INFO=fault)) for info, fault in infos.items()
        }
        cold.config = IMPATIENT
        cold.substituters = [dead, *(cache.substituter() for cache in useless.values()), served.substituter()]
        check_pulls(start(cold), registry, [f"nix-snapshotter/{NAME}", NAME])
        assert set(useless["another store"].requests) == {"/nix-cache-info"}


def test_a_dead_cache_is_reported_and_given_up_for_a_while(
    cold: Registry, served: Served, start: Start
) -> None:
    cold.config = PATIENT
    cold.substituters = [Substituter(DEAD, [served.cache.key.public], 1), served.substituter(2)]
    begun = time.monotonic()
    start(cold).pull("nix-snapshotter/wide")  # more than a hundred paths
    reported = cold.events("substituter-unreachable")
    assert {event["url"] for event in reported} == {DEAD}
    whiles = (time.monotonic() - begun) // reported[0]["seconds"]
    assert len(reported) <= 1 + whiles, "once a while, not once a path"


def test_others_are_served_meanwhile(
    registry: Registry, cold: Registry, prepared_store: ChrootStore, bad: Misbehaving, start: Start
) -> None:
    """While one image waits for a cache that does not answer, pulls and new images of other paths go on."""
    [hello] = prepared_store.installed(("hello",))["hello"]
    cold.config = PATIENT.replace("request_timeout = 60", "request_timeout = 200")
    cold.substituters = [bad.substituter()]
    start(cold).pull("nix-snapshotter/git")
    answered = threading.Event()

    def slow_for_hello(handler: wrong.Handler) -> None:
        if hash_part(hello) in handler.path:
            answered.wait(150)
        handler.whole()

    bad.faults[Kind.NARINFO] = slow_for_hello
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(cold.pull, "nix-snapshotter/hello")
        wait_until(
            lambda: any(hash_part(hello) in path for path in bad.requests), seconds=60, what="it is asked"
        )
        cold.pull("nix-snapshotter/git")
        cold.pull("nix-snapshotter/emptydir/nano")
        assert cold.get("/v2/").status == 200
        assert cold.get("/nix-cache/nix-cache-info").status == 200
        assert not waiting.done()
        answered.set()
        assert waiting.result().manifest == registry.pull("nix-snapshotter/hello").manifest


def test_a_cache_that_recovers_is_used_again(
    registry: Registry, cold: Registry, bad: Misbehaving, start: Start
) -> None:
    """What was built meanwhile stays as it is; nothing of the trouble is remembered as the truth."""
    bad.faults[Kind.NAR] = wrong.altered(wrong.flipped)
    cold.config = PATIENT
    cold.substituters = [bad.substituter()]
    start(cold)
    assert cold.pull("hello").manifest == registry.pull("hello").manifest
    bad.faults.clear()
    assert cold.pull("git").manifest == registry.pull("git").manifest
    check_stored(cold)
