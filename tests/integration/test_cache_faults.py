"""Binary caches that go wrong: the right image from elsewhere or a clear error, and nothing wrong is kept."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration import misbehaving as wrong
from tests.integration.caches import CacheDirectory, KeyPair, Served, hash_part, nginx, replace
from tests.integration.faults import LIES, LISTING_FAULTS, NAR_FAULTS, NARINFO_FAULTS
from tests.integration.misbehaving import Fault, Kind, Misbehaving, misbehaving
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import free_port
from tests.integration.server import Registry, Start, Substituter

# One second where others wait for fifteen, and no failed image is remembered.
IMPATIENT = """
[substitution]
request_timeout = 1
nar_timeout = 3
[limits]
failure_ttl = 0
"""
NAME = "shell/curl/symlinkpath/singlefile"


def check_stored(registry: Registry) -> None:
    """Every blob is what its name says, and no file is left half written."""
    blobs = registry.storage_directory / "blobs"
    for file in blobs.rglob("*"):
        if file.is_file():
            assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name
    staging = registry.storage_directory / "staging"
    assert not [file for file in staging.rglob("*") if file.is_file()]


@pytest.fixture
def bad(full_cache: CacheDirectory) -> Iterator[Misbehaving]:
    with misbehaving(full_cache) as cache:
        yield cache


def pull_beside_a_good_one(
    kind: Kind,
    fault: Fault,
    bad: Misbehaving,
    served: Served,
    directory: Path,
    store: ChrootStore,
    start: Start,
) -> tuple[Registry, list[str]]:
    """Both formats, from the bad cache first and a good one behind it; which names could be pulled."""
    bad.faults[kind] = fault
    registry = Registry(directory / "state", store.root, config=IMPATIENT)
    registry.substituters = [bad.substituter(1), served.substituter(2)]
    start(registry)
    names = [f"nix-snapshotter/{NAME}"] if kind is not Kind.NAR else []
    return registry, [*names, NAME]


def check_pulls(registry: Registry, reference: Registry, names: list[str]) -> None:
    for name in names:
        assert registry.pull(name).manifest == reference.pull(name).manifest
    assert not registry.events("realised"), "the good cache has everything"
    check_stored(registry)


@pytest.mark.parametrize("fault", NARINFO_FAULTS)
def test_narinfos_go_wrong(
    registry: Registry,
    empty_store: ChrootStore,
    served: Served,
    bad: Misbehaving,
    directory: Path,
    start: Start,
    fault: str,
) -> None:
    own, names = pull_beside_a_good_one(
        Kind.NARINFO, NARINFO_FAULTS[fault], bad, served, directory, empty_store, start
    )
    check_pulls(own, registry, names)
    assert bad.requests
    refused = own.events("path-info-refused")
    if fault in LIES:
        assert refused
        assert all(event["cache"] == bad.url and event["path"] and event["reason"] for event in refused), (
            refused
        )
    assert not any(event["cache"] != bad.url for event in refused)


@pytest.mark.parametrize("fault", LISTING_FAULTS)
def test_listings_go_wrong(
    registry: Registry,
    empty_store: ChrootStore,
    served: Served,
    bad: Misbehaving,
    directory: Path,
    start: Start,
    fault: str,
) -> None:
    """What they would say is in the NAR too."""
    own, names = pull_beside_a_good_one(
        Kind.LISTING, LISTING_FAULTS[fault], bad, served, directory, empty_store, start
    )
    check_pulls(own, registry, names[:1])
    assert any(path.endswith(".ls") for path in bad.requests)


@pytest.mark.parametrize("fault", NAR_FAULTS)
def test_nars_go_wrong(
    registry: Registry,
    empty_store: ChrootStore,
    served: Served,
    bad: Misbehaving,
    directory: Path,
    start: Start,
    fault: str,
) -> None:
    own, names = pull_beside_a_good_one(
        Kind.NAR, NAR_FAULTS[fault], bad, served, directory, empty_store, start
    )
    check_pulls(own, registry, names)
    assert any(path.startswith("/nar/") for path in bad.requests)


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


@pytest.mark.parametrize(
    ("kind", "fault"), [(kind, fault) for kind, faults in ALONE.items() for fault in faults]
)
def test_without_another_cache_it_is_built(
    registry: Registry,
    empty_store: ChrootStore,
    bad: Misbehaving,
    directory: Path,
    start: Start,
    kind: Kind,
    fault: str,
) -> None:
    bad.faults[kind] = (NARINFO_FAULTS if kind is Kind.NARINFO else NAR_FAULTS)[fault]
    own = Registry(directory / "state", empty_store.root, config=IMPATIENT)
    own.substituters = [bad.substituter()]
    start(own)
    assert own.pull(NAME).manifest == registry.pull(NAME).manifest
    assert own.events("realised")
    check_stored(own)


def broken_narinfos(
    full_cache: CacheDirectory, root: Path, change: Callable[[bytes], bytes]
) -> CacheDirectory:
    cache = full_cache.copy(root)
    for file in cache.root.glob("*.narinfo"):
        replace(file, change(file.read_bytes()))
    return cache


def test_narinfos_of_other_paths(
    registry: Registry,
    prepared_store: ChrootStore,
    empty_store: ChrootStore,
    full_cache: CacheDirectory,
    served: Served,
    directory: Path,
    start: Start,
) -> None:
    """Each of them well signed, but not the answer to the question."""
    [other] = prepared_store.installed(("emptyDir",))["emptyDir"]
    content = full_cache.narinfo(other).read_bytes()
    cache = broken_narinfos(full_cache, directory / "cache", lambda _: content)
    with misbehaving(cache) as bad:
        own = Registry(directory / "state", empty_store.root, config=IMPATIENT)
        own.substituters = [bad.substituter(1), served.substituter(2)]
        check_pulls(start(own), registry, [f"nix-snapshotter/{NAME}", NAME])


def test_another_key_of_the_same_name(
    registry: Registry,
    prepared_store: ChrootStore,
    empty_store: ChrootStore,
    served: Served,
    directory: Path,
    start: Start,
) -> None:
    """Its signatures are well made, by somebody else."""
    stranger = KeyPair.generate(directory / "key", served.cache.key.public.partition(":")[0])
    forged = CacheDirectory(directory / "forged", stranger)
    forged.publish(prepared_store, [p for p in prepared_store.all_paths() if not p.endswith(".drv")])
    with nginx(forged, directory / "nginx-forged") as liar:
        own = Registry(directory / "state", empty_store.root, config=IMPATIENT)
        own.substituters = [
            Substituter(liar.url, [served.cache.key.public], 1),  # it should have this key
            served.substituter(2),
        ]
        check_pulls(start(own), registry, [f"nix-snapshotter/{NAME}", NAME])
        refused = own.events("path-info-refused")
        assert refused
        assert all(event["cache"] == liar.url for event in refused)
        assert stranger.public.partition(":")[0] in json.dumps(refused[0]["keys"])
        assert liar.nars() == []


def test_a_key_counts_for_its_own_substituter_alone(
    empty_store: ChrootStore, served: Served, directory: Path, start: Start
) -> None:
    """That another one is trusted with a key does not make this one trusted."""
    own = Registry(directory / "state", empty_store.root, config=IMPATIENT)
    other = KeyPair.generate(directory / "key", "other-1")
    own.substituters = [
        Substituter(served.url, [other.public], 1),
        Substituter(f"http://127.0.0.1:{free_port()}", [served.cache.key.public], 2),
    ]
    start(own).pull("nix-snapshotter/hello")
    assert own.events("path-info-refused")
    assert own.events("realised")


@pytest.mark.parametrize("kind", ["dead", "another store", "info missing", "info slow", "info nonsense"])
def test_caches_that_are_of_no_use_as_a_whole(
    registry: Registry,
    empty_store: ChrootStore,
    full_cache: CacheDirectory,
    served: Served,
    directory: Path,
    start: Start,
    kind: str,
) -> None:
    """Neither starting nor making images waits for them."""
    cache = full_cache.copy(directory / "cache")
    faults: dict[str, Fault] = {
        "another store": wrong.instead(b"StoreDir: /gnu/store\nPriority: 1\n"),
        "info missing": wrong.status(404),
        "info slow": wrong.slow_headers,
        "info nonsense": wrong.instead(b"\x00\xff" * 1000),
    }
    with ExitStack() as stack:
        if kind == "dead":
            first = Substituter(f"http://127.0.0.1:{free_port()}", [cache.key.public])
        else:
            first = stack.enter_context(misbehaving(cache, INFO=faults[kind])).substituter()
        own = Registry(directory / "state", empty_store.root, config=IMPATIENT)
        own.substituters = [first, served.substituter()]
        with_both = start(own)
        check_pulls(with_both, registry, [f"nix-snapshotter/{NAME}", NAME])


def test_a_dead_cache_is_reported_and_given_up_for_a_while(
    empty_store: ChrootStore, served: Served, directory: Path, start: Start
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    own = Registry(directory / "state", empty_store.root, config=IMPATIENT)
    own.substituters = [Substituter(dead, [served.cache.key.public], 1), served.substituter(2)]
    start(own).pull("nix-snapshotter/wide")  # more than a hundred paths
    reported = own.events("substituter-unreachable")
    assert [event["url"] for event in reported] == [dead], "once, not once a path"


def test_others_are_served_meanwhile(
    registry: Registry,
    prepared_store: ChrootStore,
    empty_store: ChrootStore,
    full_cache: CacheDirectory,
    directory: Path,
    start: Start,
) -> None:
    """While one image waits for a cache that does not answer, pulls and new images of other paths go on."""
    [hello] = prepared_store.installed(("hello",))["hello"]
    with misbehaving(full_cache) as bad:
        own = Registry(directory / "state", empty_store.root, substituters=[bad.substituter()])
        own.config = "[substitution]\nrequest_timeout = 4\n"
        start(own)
        own.pull("nix-snapshotter/git")

        def slow_for_hello(handler: wrong.Handler) -> None:
            if hash_part(hello) in handler.path:
                wrong.slow_headers(handler)
            else:
                handler.whole()

        bad.faults[Kind.NARINFO] = slow_for_hello
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(own.manifest("nix-snapshotter/hello")))
        waiting.start()
        while not any(hash_part(hello) in path for path in bad.requests):
            time.sleep(0.02)
        begun = time.monotonic()
        own.pull("nix-snapshotter/git")
        own.pull("nix-snapshotter/emptydir/nano")
        assert own.get("/v2/").status == 200
        assert own.get("/nix-cache/nix-cache-info").status == 200
        assert waiting.is_alive()
        assert time.monotonic() - begun < 4
        waiting.join()
        assert answers[0].status == 200
        assert answers[0].json() == registry.pull("nix-snapshotter/hello").manifest


def test_a_cache_that_recovers_is_used_again(
    registry: Registry, empty_store: ChrootStore, bad: Misbehaving, directory: Path, start: Start
) -> None:
    """What was built meanwhile stays as it is; nothing of the trouble is remembered as the truth."""
    bad.faults[Kind.NAR] = wrong.altered(wrong.flipped)
    own = Registry(directory / "state", empty_store.root, config=IMPATIENT)
    own.substituters = [bad.substituter()]
    start(own)
    assert own.pull("hello").manifest == registry.pull("hello").manifest
    bad.faults.clear()
    assert own.pull("git").manifest == registry.pull("git").manifest
    check_stored(own)
