"""Many clients at once: what is evaluated, counted where Nix does it, and who is asked to come back later."""

import asyncio
import itertools
import os
import random
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from tests.integration.builds import Builds, copy_busybox
from tests.integration.need import need
from tests.integration.nixtools import ENDLESS, EXAMPLES, ChrootStore
from tests.integration.server import OCI_MANIFEST, Registry, Response, Start, Substituter
from tests.integration.sources_git import Repository

REQUESTS = 200
REVISIONS = ("one", "two", "three")
SYSTEMS = {"": "x86_64-linux", "arm64/": "aarch64-linux"}
PACKAGES = "abcdef"
# Says each time an attribute is computed. Restricted, as git's sources are, and built on this machine for any system.
TRACED = """
{{ system, ... }}:
let
  make = name: builtins.trace "computed {revision} ${{system}} ${{name}};" (derivation {{
    inherit name; system = "x86_64-linux"; builder = "${{./bin}}/busybox";
    args = [ "sh" "-c" "echo {revision} ${{system}} ${{name}} > $out" ];
  }});
in builtins.listToAttrs (map (name: {{ inherit name; value = make name; }}) [ {names} "cacert" ])
"""


@dataclass(frozen=True)
class Asked:
    format: str
    prefix: str
    names: tuple[str, ...]
    tag: str

    @property
    def target(self) -> str:
        return f"/v2/{self.format}/many/{self.prefix}{'/'.join(self.names)}/manifests/{self.tag}"


def what_nix_prints(directory: Path) -> tuple[Path, str]:
    """A file with all that evaluating processes say, and the PATH by which they are found."""
    need("nix", "nix-instantiate")
    directory.mkdir()
    for name in ("nix", "nix-instantiate"):
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec {shutil.which(name)} "$@" 2>>{directory}/said\n')
        program.chmod(0o755)
    return directory / "said", f"{directory}:{os.environ['PATH']}"


@pytest.mark.parametrize("caches", [0, 1])
async def test_each_attribute_is_evaluated_once(
    directory: Path, empty_store: ChrootStore, start: Start, caches: int
) -> None:
    """Where there is a binary cache, the first question about a revision is answered without writing derivations; this
    one has nothing, so they are written afterwards: each of these, once."""
    cache = directory / "cache"
    cache.mkdir()
    (cache / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    substituters = [Substituter(f"file://{cache}")] * caches
    repository = Repository.create(directory / "repository")
    copy_busybox(repository.root)
    names = " ".join(f'"{name}"' for name in PACKAGES)
    commits = {}
    for revision in REVISIONS:
        text = TRACED.format(revision=revision, names=names)
        commits[revision] = repository.commit({"default.nix": text})
        repository.git("branch", revision)
    said, path = what_nix_prints(directory / "programs")
    config = f"""
base_packages = ["cacert"]
[sources.many]
spec = "{repository.url}"
prefix = "many"
[limits]
client_images = {REQUESTS}
"""
    state = directory / "state"
    registry = start(
        Registry(state, empty_store.root, config=config, substituters=substituters, env={"PATH": path})
    )
    chosen = random.Random(5)
    combinations = [*itertools.combinations(PACKAGES, 1), *itertools.combinations(PACKAGES, 2)]
    tags = {tag: revision for revision in REVISIONS for tag in (revision, commits[revision])}
    tags["latest"] = REVISIONS[-1]
    asked = [
        Asked(
            chosen.choice(["classic", "nix-snapshotter"]),
            chosen.choice([*SYSTEMS]),
            tuple(chosen.sample(names := chosen.choice(combinations), len(names))),
            chosen.choice([*tags]),
        )
        for _ in range(REQUESTS)
    ]
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers={"Accept": OCI_MANIFEST}) as session:

        async def fetch(one: Asked) -> tuple[int, str | None]:
            async with session.get(f"http://{registry.host}{one.target}") as answer:
                await answer.read()
                return answer.status, answer.headers.get("X-Nixery-Snap-Revision")

        answers = await asyncio.gather(*map(fetch, asked))

    assert answers == [(200, commits[tags[one.tag]]) for one in asked]
    expected = {
        (tags[one.tag], SYSTEMS[one.prefix], name) for one in asked for name in (*one.names, "cacert")
    }
    assert len(expected) > len(REVISIONS) * len(SYSTEMS) * len(PACKAGES) / 2, "most of them"
    once = Counter(expected)
    computed = Counter(
        (*part.split()[:2], part.split()[2].partition(";")[0])
        for part in said.read_text().split("computed ")[1:]
    )
    by_commit = {commit: revision for revision, commit in commits.items()}
    evaluated, instantiated = (
        [((by_commit[event["revision"]], event["system"]), event["names"]) for event in registry.events(kind)]
        for kind in ("attributes-evaluated", "instantiated")
    )
    assert Counter((*key, name) for key, names in evaluated for name in names) == once, "as the log says"
    again = Counter((*key, name) for key, names in instantiated for name in names)
    assert computed == once + again, "by Nix"
    assert max(again.values(), default=0) == caches, "none where all are written at once"
    for key in {key for key, _ in instantiated}:
        written = {name for *of, name in again if of == [*key]}
        assert any(written <= {*names} for of, names in evaluated if of == key), "of the first question alone"
    records = list((registry.storage_directory / "records/package").rglob("*.json"))
    assert len(records) == len(expected), "as replicas will find it"


# --- who is asked to come back later


def is_there(registry: Registry, name: str) -> bool:
    return registry.manifest(name).status == 200


def eventually(check: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def refused(answer: Response, setting: str) -> bool:
    if answer.status != 429:
        return False
    assert answer.error["code"] == "TOOMANYREQUESTS"
    assert setting in answer.error["message"]
    assert int(answer.headers["retry-after"]) > 0
    return True


async def at_once(registry: Registry, names: str) -> Counter[int]:
    """Statuses of the answers to one request for each name, all at the same time."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers={"Accept": OCI_MANIFEST}) as session:

        async def fetch(name: str) -> int:
            async with session.get(f"http://{registry.host}/v2/{name}/manifests/latest") as answer:
                return answer.status

        return Counter(await asyncio.gather(*map(fetch, names)))


async def test_one_client_has_its_share(
    directory: Path, empty_store: ChrootStore, builds: Builds, start: Start
) -> None:
    config = f"[nix]\nwait_timeout = 0.5\nbuilds = 8\n{builds.options}[limits]\nclient_images = 3\n"
    registry = start(Registry(directory / "state", empty_store.root, builds.source, config=config))
    assert await at_once(registry, "abcdefgh") == {503: 3, 429: 5}, "also of those that come in one moment"
    states = {name: registry.manifest(name) for name in "abcdefgh"}
    under_way = [name for name, answer in states.items() if answer.status == 503]
    assert len(under_way) == 3, "who asks again begins nothing"
    for name, answer in states.items():
        if name in under_way:
            assert int(answer.headers["retry-after"]) > 0
            assert "still being made" in answer.error["message"]
        else:
            assert refused(answer, "limits.client_images")
    builds.go()
    for name in (*under_way, *states):
        eventually(partial(is_there, registry, name), f"there is room again for {name}")


def test_the_queue_of_builds(directory: Path, empty_store: ChrootStore, builds: Builds, start: Start) -> None:
    config = f"[nix]\nwait_timeout = 0.5\nbuilds = 1\n{builds.options}[limits]\nbuild_queue = 1\n"
    registry = start(Registry(directory / "state", empty_store.root, builds.source, config=config))
    assert registry.manifest("a").status == 503
    eventually(lambda: builds.began("a"), "a is built")

    def waits() -> bool:
        answer = registry.manifest("b")
        assert answer.status == 503
        return "waiting for its turn" in answer.error["message"]

    eventually(waits, "b waits")
    eventually(lambda: refused(registry.manifest("c"), "limits.build_queue"), "c finds no room")
    eventually(lambda: registry.head("/v2/c/manifests/latest").status == 429, "a HEAD says so too")
    assert not builds.began("b")
    builds.go()
    for name in "abc":
        eventually(partial(is_there, registry, name), name)


async def test_who_evaluates_much_holds_up_nobody_else(
    directory: Path, own_store: ChrootStore, start: Start
) -> None:
    """There is one evaluator, and one client has five questions for it to which it never finds an answer."""
    source = directory / "endless"
    source.mkdir()
    added = " ".join(f'e{number} = builtins.trace "began e{number};" {ENDLESS};' for number in range(5))
    (source / "default.nix").write_text(
        f"""{{ system }}:
let examples = import {EXAMPLES} {{ inherit system; }};
in examples // {{ {added} hello = builtins.trace "began hello;" examples.hello; }}"""
    )
    said, path = what_nix_prints(directory / "programs")
    config = "[nix]\neval_timeout = 5\nevaluators = 1\n[limits]\nshutdown_timeout = 0\n"
    registry = start(Registry(directory / "state", own_store.root, source, config=config, env={"PATH": path}))

    def began() -> list[str]:
        return re.findall(r"began (\w+);", said.read_text()) if said.exists() else []

    async def ask(name: str, address: str) -> int:
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with (
            aiohttp.ClientSession(connector=connector, headers={"Accept": OCI_MANIFEST}) as session,
            session.get(f"http://{registry.host}/v2/{name}/manifests/latest") as answer,
        ):
            return answer.status

    greedy = [asyncio.create_task(ask(f"e{number}", "127.0.0.2")) for number in range(5)]
    await asyncio.to_thread(eventually, began, "the first is evaluated")
    assert await ask("hello", "127.0.0.3") == 200
    order = list(dict.fromkeys(began()))  # what Nix cannot finish it may begin once more
    assert order.index("hello") <= 2, "behind the one that runs, and one that came while this one was read"
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)


def test_tags_that_are_looked_for(directory: Path, empty_store: ChrootStore, start: Start) -> None:
    """They count too: each is work for git, one after the other. What goes on at the end is ended."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/packages.git"
        config = f"""
[sources.silent]
spec = "git+{url}"
prefix = "silent"
[nix]
wait_timeout = 0.5
[limits]
client_images = 2
"""
        registry = start(Registry(directory / "state", empty_store.root, config=config))
        for tag in ("one", "two", "one"):
            assert registry.manifest("silent/hello", tag).status == 503
        assert refused(registry.manifest("silent/hello", "three"), "limits.client_images")
        search = registry.get("/api/v1/packages?q=hello&source=silent&tag=four")
        assert refused(search, "limits.client_images")
        listing = registry.get("/v2/silent/hello/tags/list")
        assert listing.status == 503
        assert "retry-after" in listing.headers
        eventually(lambda: bool(processes_with(url)), "git asks")
        assert registry.stop() == 0
        # Who was killed is among the processes for a moment more; git gives such a server up after 60 s.
        eventually(lambda: not processes_with(url), "git and its helpers are gone", seconds=20)


class Unready(Registry):
    """Of a source that cannot be read."""

    def ready(self) -> bool:
        try:
            return self.get("/healthz").status == 200
        except OSError:
            return False


def test_a_source_that_never_answers(directory: Path, empty_store: ChrootStore, start: Start) -> None:
    """Probes do not wait for it as long as clients do."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"git+http://127.0.0.1:{silent.getsockname()[1]}/packages.git"
        registry = Unready(directory / "state", empty_store.root, config="[nix]\nwait_timeout = 1000\n")
        registry.spec = url
        start(registry)
        answer = registry.get("/readyz")
        assert (answer.status, answer.body) == (503, b"the default package source is still being read\n")


def processes_with(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found
