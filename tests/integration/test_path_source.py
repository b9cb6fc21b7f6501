"""A directory as a package source: its content is the revision."""

import os
import shutil
from pathlib import Path

import pytest

from tests.integration.nixtools import ChrootStore, add_package
from tests.integration.server import Image, Registry, Start

REVISION = "org.opencontainers.image.revision"


@pytest.fixture
def edited(directory: Path, own_store: ChrootStore, own_source: Path, start: Start) -> Registry:
    return start(Registry(directory / "state", own_store.root, own_source))


def edit(source: Path, old: str, new: str) -> None:
    file = source / "basics.nix"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def revision_of(image: Image) -> str:
    return str(image.manifest["annotations"][REVISION])


def test_an_edit_is_seen_at_the_next_request(edited: Registry, own_source: Path) -> None:
    before = edited.pull("hello")
    edit(own_source, "Hello, world!", "Hello, edit!!")
    after = edited.pull("hello")
    assert after.digest != before.digest
    assert revision_of(after) != revision_of(before)
    edit(own_source, "Hello, edit!!", "Hello, world!")
    assert edited.pull("hello") == before
    assert len(edited.events("evaluated")) == 2  # the first revision was known
    assert edited.manifest("hello", before.digest).body == before.manifest_bytes
    assert edited.manifest("hello", after.digest).body == after.manifest_bytes


def test_a_new_package_and_a_removed_one(edited: Registry, own_source: Path) -> None:
    assert edited.manifest("greeter").status == 404
    add_package(own_source, "greeter", "echo hi > $out")
    assert edited.manifest("greeter").status == 200
    edit(own_source, "greeter = mk", "welcomer = mk")
    assert edited.manifest("greeter").status == 404
    assert edited.manifest("welcomer").status == 200


def test_nothing_is_evaluated_twice_while_it_is_unchanged(edited: Registry) -> None:
    for _ in range(3):
        edited.pull("shell/curl/hello")
        edited.pull("shell/hello/curl/hello")
    assert len(edited.events("evaluated")) == 1
    assert len(edited.events("assembled")) == 1


def test_times_are_not_content(edited: Registry, own_source: Path) -> None:
    """A fresh checkout of the same files is the same revision."""
    before = edited.pull("hello")
    for file in own_source.iterdir():
        os.utime(file, (1, 1))
    assert edited.pull("hello") == before
    assert len(edited.events("evaluated")) == 1


def test_same_size_and_same_time_but_other_content_is_seen(edited: Registry, own_source: Path) -> None:
    before = edited.pull("hello")
    file = own_source / "basics.nix"
    status = file.stat()
    edit(own_source, "Hello, world!", "Hello, times!")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert edited.pull("hello").digest != before.digest


def test_a_revision_is_a_tag(edited: Registry, own_source: Path) -> None:
    """What `latest` was is had for as long as the server keeps its copy; no other tag is known."""
    before = edited.pull("hello")
    edit(own_source, "Hello, world!", "Hello, later!")
    assert edited.pull("hello") != before
    assert edited.pull("hello", revision_of(before)) == before
    answer = edited.manifest("hello", "no-such-tag")
    assert (answer.status, answer.error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert "latest" in answer.error["message"]


def test_a_directory_put_in_place_of_the_source(edited: Registry, own_source: Path) -> None:
    """By renaming, as careful deployments do."""
    before = edited.pull("hello")
    fresh = Path(shutil.copytree(own_source, own_source.with_name("fresh")))
    edit(fresh, "Hello, world!", "Hello, fresh!")
    own_source.rename(own_source.with_name("stale"))
    fresh.rename(own_source)
    assert edited.pull("hello").digest != before.digest


def test_a_link_turned_to_another_directory(
    directory: Path, own_store: ChrootStore, own_source: Path, start: Start
) -> None:
    """As profiles of Nix and volumes of Kubernetes do it."""
    fresh = Path(shutil.copytree(own_source, own_source.with_name("fresh")))
    edit(fresh, "Hello, world!", "Hello, fresh!")
    link = directory / "link"
    link.symlink_to(own_source)
    registry = start(Registry(directory / "state", own_store.root, link))
    before = registry.pull("hello")
    turned = directory / "turned"
    turned.symlink_to(fresh)
    turned.rename(link)
    assert registry.pull("hello").digest != before.digest


def test_what_can_be_made_again_may_be_removed(edited: Registry) -> None:
    """The cache directory is a cache: emptied while the server runs, it costs time and nothing else."""
    edited.pull("hello")
    for entry in (edited.state / "cache").iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    edited.pull("curl")


def test_a_source_that_does_not_evaluate(edited: Registry, own_source: Path) -> None:
    """It is not the client's fault, but no secret either; and it can be mended while we run."""
    good = edited.pull("hello")
    text = (own_source / "basics.nix").read_text()
    (own_source / "basics.nix").write_text("{ this is not Nix")
    answer = edited.manifest("hello")
    assert answer.status >= 400
    assert "syntax error" in answer.error["message"]
    (own_source / "basics.nix").write_text(text)
    assert edited.pull("hello") == good


def test_where_two_sources_are_the_same_so_are_the_images(
    directory: Path, edited: Registry, registry: Registry
) -> None:
    """The place of the directory is not part of the revision."""
    here, there = edited.pull("hello"), registry.pull("hello")
    assert revision_of(here) == revision_of(there)
    assert [layer["digest"] for layer in here.layers] == [layer["digest"] for layer in there.layers]


def collect_garbage(registry: Registry, store: ChrootStore) -> None:
    """All of hello, its derivation too, and what refers to it."""
    registry.stop()  # its evaluators keep what they have written from the collector
    shutil.rmtree(registry.state / "cache/gcroots")
    # Not by `nix-store --gc`, which spares what any process of this machine happens to mention.
    hello = [f"/nix/store/{path.name}" for path in store.root.glob("nix/store/*-hello-2.12.1*")]
    doomed = store.run("nix-store", "--query", "--referrers-closure", *hello).split()
    store.run("nix-store", "--delete", "--ignore-liveness", *doomed)
    assert not list(store.root.glob("nix/store/*-hello-2.12.1*"))
    registry.start()


def test_what_the_garbage_collector_took_is_made_again(
    own_source: Path, own_store: ChrootStore, directory: Path, start: Start
) -> None:
    """The evaluation is remembered, the derivations that it wrote are gone, and nothing was published."""
    nothing_published = {"NIXERY_SNAP_BINARY_CACHE__PUBLISH": "off"}
    registry = start(Registry(directory / "state", own_store.root, own_source, env=nothing_published))
    assert registry.manifest("nix-snapshotter/hello").status == 404  # no node could fetch it
    (registry.state / "cache/gcroots").mkdir(exist_ok=True)
    collect_garbage(registry, own_store)
    registry.pull("classic/hello")
    assert len(registry.events("evaluated")) == 1
    assert [event["names"] for event in registry.events("instantiated")] == [["hello"]]


def test_what_was_published_outlives_the_garbage_collector(edited: Registry, own_store: ChrootStore) -> None:
    edited.pull("nix-snapshotter/hello")
    collect_garbage(edited, own_store)
    edited.pull("classic/hello")
    assert len(edited.events("evaluated")) == 1
    assert not list(own_store.root.glob("nix/store/*-hello-2.12.1*"))
