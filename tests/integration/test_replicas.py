"""Several real servers that have nothing in common but a bucket and a signing key."""

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.buckets import Buckets
from tests.integration.caches import KeyPair
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.processes import wait_until
from tests.integration.server import OCI_MANIFEST, Registry

REPLICAS = 3
REQUESTS = 10  # for each image
PACKAGES = ("hello", "curl", "which", "nano", "coreutils", "busybox", "git")
NAMES = [f"classic/{one}/{other}" for one, other in itertools.combinations(PACKAGES, 2)]
NAMES += [f"nix-snapshotter/{name.removeprefix('classic/')}" for name in NAMES[:9]]


@pytest.fixture(scope="module")
def source(scratch: Path) -> Path:
    return Path(shutil.copytree(EXAMPLES, scratch / "replicas-source"))


@pytest.fixture(scope="module")
def replicas(
    scratch: Path, prepared_store: ChrootStore, buckets: Buckets, source: Path
) -> Iterator[list[Registry]]:
    """With a Nix store each, in which everything is built already."""
    key = KeyPair.generate(scratch / "replicas-key", "replicas-1")
    # Of two that believe to hold a lease both would do the work: no lease ends before its holder.
    config = f"""
binary_cache.signing_key_file = '{key.file}'
limits.client_images = 100
nix.wait_timeout = 250
object_store = {{ lease = 250, timeout = 100 }}
"""
    home = scratch / "replicas"
    with ExitStack() as stack:
        running = []
        for number in range(REPLICAS):
            registry = Registry(
                home / str(number),
                prepared_store.copy(home / f"store-{number}").root,
                source,
                storage=buckets.url("replicas", "all/of/it"),
                config=config,
                env=buckets.env,
            )
            running.append(registry.start())
            stack.callback(registry.stop)
        yield running


async def ask(
    session: aiohttp.ClientSession, name: str, replicas: Sequence[Registry]
) -> tuple[str, int, bytes]:
    """As behind a balancer: who does not answer at all is left for the next one."""
    for registry in replicas:
        try:
            async with session.get(f"http://{registry.host}/v2/{name}/manifests/latest") as answer:
                return name, answer.status, await answer.read()
        except aiohttp.ClientError:  # before its answer, or within
            pass
    raise AssertionError(f"nobody answers for {name}")


async def ask_for_all(replicas: Sequence[Registry]) -> Mapping[str, bytes]:
    """Ten requests for each image at once, spread over all replicas; the manifests, the same in all answers."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    options: dict[str, Any] = {"connector": connector, "timeout": aiohttp.ClientTimeout(total=None)}
    async with aiohttp.ClientSession(headers={"Accept": OCI_MANIFEST}, **options) as session:
        answers = await asyncio.gather(
            *(
                ask(
                    session,
                    name,
                    [replicas[(number + position + more) % REPLICAS] for more in range(REPLICAS)],
                )
                for number in range(REQUESTS)
                for position, name in enumerate(NAMES)
            )
        )
    assert len(answers) == 300
    assert {status for _, status, _ in answers} == {200}, [answer for answer in answers if answer[1] != 200]
    manifests = {(name, body) for name, _, body in answers}
    assert len(manifests) == len(NAMES), "replicas disagree"
    return dict(manifests)


def assembled(replicas: Sequence[Registry]) -> Counter[str]:
    """How often each image was assembled, by the digest of its manifest."""
    return Counter(event["digest"] for registry in replicas for event in registry.events("assembled"))


async def test_each_image_is_assembled_once(replicas: list[Registry]) -> None:
    assert len(NAMES) == 30
    await ask_for_all(replicas)
    made = assembled(replicas)
    assert len(made) == 30
    assert set(made.values()) == {1}
    for name in NAMES[::10]:
        assert len({registry.pull(name).digest for registry in replicas}) == 1


async def test_one_is_killed(replicas: list[Registry], source: Path) -> None:
    """In the middle of thirty other images: the others answer every request, and do no work twice."""
    before = assembled(replicas)
    basics = source / "basics.nix"
    basics.write_text(basics.read_text() + "\n# another revision\n")
    count = {registry.port: len(registry.events("assembled")) for registry in replicas}

    def busy() -> list[Registry]:
        return [one for one in replicas if len(one.events("assembled")) > count[one.port]]

    def kill_the_busy_one() -> Registry:
        wait_until(lambda: bool(busy()), seconds=200, what="one of them is at work")
        victim = busy()[0]
        victim.kill()
        return victim

    manifests, victim = await asyncio.gather(ask_for_all(replicas), asyncio.to_thread(kill_the_busy_one))
    others = [registry for registry in replicas if registry is not victim]
    unfinished = 30 - len(assembled([victim]) - before)
    assert unfinished, "it was killed too late"
    made = assembled(others) - before
    assert set(made.values()) == {1}
    assert len(made) >= unfinished
    victim.start()
    for name in NAMES:
        image = victim.pull(name)
        assert image.manifest_bytes == manifests[name]


def test_another_key_is_refused(
    replicas: list[Registry], prepared_store: ChrootStore, directory: Path
) -> None:
    """It says what to do; the one that is made by itself is another one, too."""
    stranger = Registry(
        directory / "stranger", prepared_store.root, storage=replicas[1].storage, env=replicas[1].env
    )
    stranger.env = {
        **stranger.env,
        "XDG_STATE_HOME": str(directory),
        "NIXERY_SNAP_BINARY_CACHE__SIGNING_KEY_FILE": str(KeyPair.generate(directory / "other-key").file),
    }
    with pytest.raises(AssertionError, match=r"signing_key_file.*name the same key file on all servers"):
        stranger.start()
