"""What an unpacked image must hold, told from Nix's own store and not from the program under test."""

import os
from collections.abc import Iterable
from pathlib import Path

from tests.integration.nixtools import STORE_DIRECTORY, ChrootStore, tree_of
from tests.integration.server import Json, Registry

ALWAYS_ADDED = (("cacert",), ("iana-etc",))
CLOSURE = "containerd.io/snapshot/nix-closure"
LEGACY = "containerd.io/snapshot/nix-store-path."
EXTRAS = {b"tmp", b"etc/passwd", b"etc/group", b"usr/bin/env"}


def annotated_paths(layer: Json) -> list[str]:
    """The store paths that a snapshotter layer's annotations name, in the order of their numbers."""
    numbered = {
        int(key.removeprefix(LEGACY)): value
        for key, value in layer["annotations"].items()
        if key.startswith(LEGACY)
    }
    assert sorted(numbered) == list(range(len(numbered)))
    return [numbered[number] for number in sorted(numbered)]


def store_names(rootfs: Path) -> set[str]:
    """What lies directly in the image's store directory, as store paths."""
    return {f"{STORE_DIRECTORY}/{name}" for name in os.listdir(rootfs / "nix" / "store")}


def forest_links(rootfs: Path) -> dict[bytes, bytes]:
    """Link by link, what the image has outside of its store."""
    outside: dict[bytes, bytes] = {}
    for name in os.listdir(os.fsencode(rootfs)):
        if name == b"nix":
            continue
        below = tree_of(rootfs / os.fsdecode(name))
        for relative, entry in below.items():
            path = name + b"/" + relative if relative else name
            if entry.kind == "symlink":
                outside[path] = entry.content
            else:
                assert entry.kind == "directory" or path in EXTRAS, f"neither link nor directory: {path!r}"
    return outside


def check_forest(rootfs: Path, store: ChrootStore, packages: Iterable[str]) -> None:
    """Every file of every package is found below `/`: its own or, of two with one name, one of theirs.

    No link leads anywhere but into the packages' closure.
    """
    links = forest_links(rootfs)
    wanted: dict[bytes, list[bytes]] = {}
    for package in packages:
        real = store.resolve(package)
        if real is None or not real.is_dir():
            continue  # a file has no place in a forest
        for relative, entry in tree_of(real).items():
            if entry.kind != "directory":
                wanted.setdefault(relative, []).append(os.fsencode(package) + b"/" + relative)
    for relative, candidates in wanted.items():
        if any(_is_file_of_another(relative, other) for other in wanted):
            continue  # a directory here, a file there: only one of them can be
        parts = relative.split(b"/")
        heads = [b"/".join(parts[: count + 1]) for count in range(len(parts))]
        link = next((head for head in heads if head in links), None)
        assert link is not None, f"no link for {relative!r}"
        leads_to = links[link] + relative[len(link) :]
        same = [store.resolve(path) for path in candidates if store.resolve(path)]
        assert leads_to in candidates or store.resolve(leads_to) in same, (relative, leads_to, candidates)
    closure = store.closure(packages)
    for path, target in links.items():
        inside = "/".join(os.fsdecode(target).split("/")[:4])
        assert inside in closure or path in EXTRAS, (path, target)


def _is_file_of_another(one: bytes, other: bytes) -> bool:
    return one.startswith(other + b"/") or other.startswith(one + b"/")


def image_paths(registry: Registry, name: str) -> list[str]:
    """The closure of an image, which is published as soon as its manifest is served."""
    answer = registry.manifest(f"nix-snapshotter/{name}")
    assert answer.status == 200, answer
    return annotated_paths(answer.json()["layers"][0])
