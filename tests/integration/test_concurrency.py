"""Equal requests at one time are one piece of work; repeated ones are none."""

import asyncio
import shutil
from pathlib import Path

import aiohttp

from tests.integration.nixtools import ChrootStore
from tests.integration.server import OCI_MANIFEST, Registry, Start

REQUESTS = 100


async def fetch_all(registry: Registry, names: list[str]) -> list[tuple[int, bytes]]:
    """All manifests at once, each on a connection of its own."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers={"Accept": OCI_MANIFEST}) as session:

        async def fetch(name: str) -> tuple[int, bytes]:
            async with session.get(f"http://{registry.host}/v2/{name}/manifests/latest") as answer:
                return answer.status, await answer.read()

        return await asyncio.gather(*map(fetch, names))


async def test_a_hundred_first_requests_are_one_evaluation_and_one_assembly(
    directory: Path, empty_store: ChrootStore, start: Start
) -> None:
    """Nothing is built, evaluated or packed yet, and the packages come in any order."""
    registry = start(Registry(directory / "state", empty_store.root))
    answers = await fetch_all(registry, ["shell/hello/curl", "shell/curl/hello/hello"] * (REQUESTS // 2))
    assert {status for status, _ in answers} == {200}
    assert len({body for _, body in answers}) == 1
    assert len(registry.events("evaluated")) == 1
    assert len(registry.events("assembled")) == 1


async def test_both_formats_share_one_evaluation(
    directory: Path, prepared_store: ChrootStore, start: Start
) -> None:
    registry = start(Registry(directory / "state", prepared_store.root))
    answers = await fetch_all(registry, ["classic/curl", "nix-snapshotter/curl"] * 10)
    assert {status for status, _ in answers} == {200}
    assert len(registry.events("evaluated")) == 1
    assert len(registry.events("assembled")) == 2


async def test_a_hundred_requests_for_what_fails_are_one_failure(
    directory: Path, own_store: ChrootStore, start: Start
) -> None:
    registry = start(Registry(directory / "state", own_store.root))
    answers = await fetch_all(registry, ["failstobuild"] * REQUESTS)
    assert all(400 <= status < 500 for status, _ in answers)
    assert all(b"no acceptable C compiler" in body for _, body in answers)
    assert len(registry.events("evaluated")) == 1


async def test_different_images_at_once(directory: Path, own_store: ChrootStore, start: Start) -> None:
    """They do not get into each other's way, and a slow one delays none of them."""
    registry = start(Registry(directory / "state", own_store.root))
    names = ["hello", "curl", "git", "shell/hello", "wide", "nix-snapshotter/wide", "manyfiles", "weirdnames"]
    slow = asyncio.create_task(fetch_all(registry, ["slow"]))
    answers = await fetch_all(registry, names * 3)
    assert {status for status, _ in answers} == {200}
    assert [status for status, _ in await slow] == [200]
    assert len(registry.events("assembled")) == len(names) + 1


async def test_processes_that_share_a_storage(directory: Path, own_store: ChrootStore, start: Start) -> None:
    """Workers of one server, and a second server: one of them does the work, all answer with the same bytes."""
    storage = f"file://{directory / 'storage'}"
    workers = {"NIXERY_SNAP_WORKERS": "2"}
    lease = "[object_store]\nlease = 250\n"  # who stands still for a while is not taken for dead
    one = start(Registry(directory / "one", own_store.root, storage=storage, config=lease, env=workers))
    other = start(Registry(directory / "other", own_store.root, storage=storage, config=lease))
    names = ["shell/hello", "nix-snapshotter/curl", "git", "wide"]
    answers = [answer for part in await asyncio.gather(fetch_all(one, names * 8), fetch_all(other, names * 8))
               for answer in part]  # fmt: skip
    assert {status for status, _ in answers} == {200}
    assert len({body for _, body in answers}) == len(names)
    made = [event["digest"] for server in (one, other) for event in server.events("assembled")]
    assert len(made) == len(set(made)) == len(names)
    for name in names:
        assert one.pull(name) == other.pull(name)


def test_repeats_touch_neither_nix_nor_the_disk(
    directory: Path, own_store: ChrootStore, start: Start
) -> None:
    """After the first request neither Nix, nor its store, nor the object store need be there any more."""
    programs = directory / "bin"
    programs.mkdir()
    for program in ["nix", "nix-store", "nix-instantiate", "nix-build"]:
        path = shutil.which(program)
        assert path
        (programs / program).symlink_to(path)
    path_without_nix = f"{programs}:/usr/local/bin:/nonexistent"
    registry = start(Registry(directory / "state", own_store.root, env={"PATH": path_without_nix}))
    names = ["shell/hello", "nix-snapshotter/shell/hello"]
    first = [registry.pull(name) for name in names]
    before = len(registry.events("evaluated")), len(registry.events("assembled"))

    shutil.rmtree(programs)
    for gone in [own_store.root, registry.state / "storage", registry.state / "cache"]:
        if gone.exists():
            gone.rename(gone.with_name(f"{gone.name}-gone"))
    for name, image in zip(names, first, strict=True):
        for reference in ("latest", image.digest):
            assert registry.manifest(name, reference).body == image.manifest_bytes
        config = image.manifest["config"]["digest"]
        assert registry.get(f"/v2/{name}/blobs/{config}").body == image.blobs[config]
    assert (len(registry.events("evaluated")), len(registry.events("assembled"))) == before
