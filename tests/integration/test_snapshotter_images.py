"""Snapshotter images, mounted by hand: what a node with nix-snapshotter does, without nix-snapshotter.

Layer and store paths come from the registry; the node's store was empty, and it knows no other binary cache.
"""

import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.images import ALWAYS_ADDED, annotated_paths, check_forest, store_names
from tests.integration.need import need
from tests.integration.nixtools import ChrootStore
from tests.integration.runtimes.oci_bundle import Bundle, copy_from_registry, unpack
from tests.integration.server import Registry, Start

SHELL = (("bashInteractive",), ("coreutils",), ("moreutils",), ("nano",))
READ_LAST_LEAF = "for path in $(cat /needs); do last=$path; done; cat $last/id"


@dataclass(frozen=True)
class Node:
    """A machine whose store got the annotated paths of one image, and only these."""

    store: ChrootStore
    bundle: Bundle
    paths: list[str]

    def run(self, *command: str) -> str:
        return self.bundle.run(*command, mounts={path: self.store.shown(path) for path in self.paths})


def node_with(registry: Registry, name: str, directory: Path) -> Node:
    need("skopeo", "umoci", "runc", "nix")
    layers = registry.manifest(f"nix-snapshotter/{name}").json()["layers"]
    assert len(layers) == 1
    assert layers[0]["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    assert layers[0]["annotations"]["containerd.io/snapshot/nix-layer"] == "true"
    paths = annotated_paths(layers[0])
    node_store = ChrootStore.create(directory / "node")
    node_store.fetch(registry.cache_url, registry.public_key, *paths)
    image = copy_from_registry(f"{registry.host}/nix-snapshotter/{name}:latest", directory / "layout")
    return Node(node_store, unpack(image, directory / "bundle"), paths)


@pytest.mark.parametrize(
    ("name", "attributes", "command", "output"),
    [
        ("shell/hello", (*SHELL, ("hello",)), ("hello",), "Hello, world!\n"),
        ("curl", (("curl",),), (), "curl 8.8.0 (tiny)\n"),
        ("shell/wide", (*SHELL, ("wide",)), ("bash", "-c", READ_LAST_LEAF), "119\n"),
        ("shell/symlinkpath", (*SHELL, ("symlinkPath",)), ("cat", "{symlinkPath}"), "Hello, world!"),
        ("shell/dirlink", (*SHELL, ("dirLink",)), ("{dirLink}/hello",), "Hello, world!\n"),
    ],
)
def test_runs_with_exactly_the_annotated_paths(
    registry: Registry,
    prepared_store: ChrootStore,
    directory: Path,
    name: str,
    attributes: tuple[tuple[str, ...], ...],
    command: tuple[str, ...],
    output: str,
) -> None:
    node = node_with(registry, name, directory)
    installed = prepared_store.installed(*attributes, *ALWAYS_ADDED)
    wanted = [path for paths in installed.values() for path in paths]
    assert len(set(node.paths)) == len(node.paths)
    assert set(node.paths) == prepared_store.closure(wanted)  # none missing, none extra
    assert node.store.all_paths() == set(node.paths)  # substituting them brought in no other
    assert store_names(node.bundle.rootfs) == set(node.paths)
    places = {key: paths[0] for key, paths in installed.items()}
    answer = node.run(*(argument.format(**places) for argument in command))
    assert output in answer


def test_layer_holds_mountpoints_and_links_but_no_content(
    registry: Registry, prepared_store: ChrootStore, directory: Path
) -> None:
    name = "nix-snapshotter/shell/singlefile/executablefile/symlinkpath/dirlink/rootlink/wide"
    copied = copy_from_registry(f"{registry.host}/{name}:latest", directory / "layout")
    rootfs = unpack(copied, directory / "bundle").rootfs
    names = ["singleFile", "executableFile", "symlinkPath", "dirLink", "rootLink", "wide"]
    attributes = [(name,) for name in names] + [*SHELL, *ALWAYS_ADDED]
    wanted = [path for paths in prepared_store.installed(*attributes).values() for path in paths]
    for path in prepared_store.closure(wanted):
        status = (rootfs / path.lstrip("/")).lstat()
        shown = prepared_store.shown(path)  # links followed, as the kernel does for a bind mount
        if shown.is_dir():
            assert stat.S_ISDIR(status.st_mode), path
            assert stat.S_IMODE(status.st_mode) == 0o755
            assert not list((rootfs / path.lstrip("/")).iterdir())
        else:
            assert stat.S_ISREG(status.st_mode), path
            assert stat.S_IMODE(status.st_mode) == 0o555
            assert status.st_size == 0
        assert (status.st_uid, status.st_gid, status.st_mtime) == (0, 0, 1)
    check_forest(rootfs, prepared_store, wanted)


def test_config_is_that_of_the_classic_image(registry: Registry) -> None:
    """The node sees the same program: only rootfs and history may differ."""
    classic, snapshotter = (
        registry.pull(f"{kind}/shell/curl").config for kind in ("classic", "nix-snapshotter")
    )
    assert classic["config"] == snapshotter["config"]
    assert classic["architecture"] == snapshotter["architecture"]


def test_the_feature_flag_turns_the_default_round(registry: Registry, directory: Path, start: Start) -> None:
    turned = start(Registry(directory / "turned", registry.store, format="nix-snapshotter"))
    assert turned.pull("hello").manifest == registry.pull("nix-snapshotter/hello").manifest
    assert turned.pull("classic/hello").manifest == registry.pull("hello").manifest
