"""What clients could not fetch elsewhere is published, before anybody is told of it."""

from pathlib import Path

import pytest

from tests.integration.caches import Served, hash_part
from tests.integration.conftest import MakeNode
from tests.integration.images import image_paths
from tests.integration.need import need
from tests.integration.nixtools import ChrootStore, add_package, only
from tests.integration.runtimes.oci_bundle import copy_from_registry, unpack
from tests.integration.server import Registry, Start

PRIVATE = """bin secretsauce <<EOF
#!${bash}/bin/sh
echo 'tomatoes'
EOF"""


@pytest.fixture
def private_source(own_source: Path) -> Path:
    add_package(own_source, "secretsauce", PRIVATE)
    return own_source


def test_a_private_package_is_built_published_fetched_and_run(
    empty_store: ChrootStore,
    private_source: Path,
    served: Served,
    directory: Path,
    start: Start,
    make_node: MakeNode,
) -> None:
    """The node has the public cache for what is public and ours for the rest."""
    need("skopeo", "umoci", "runc")
    registry = Registry(directory / "state", empty_store.root, private_source)
    registry.substituters = [served.substituter()]
    start(registry)
    paths = image_paths(registry, "secretsauce")
    private = only(empty_store, private_source, "secretsauce")
    assert private in paths
    assert registry.get(f"/nix-cache/{hash_part(private)}.narinfo").status == 200
    published = [
        path for path in paths if registry.head(f"/nix-cache/{hash_part(path)}.narinfo").status == 200
    ]
    assert published == [private], "what the public cache has stays there"

    node = make_node()
    caches = f"{registry.cache_url} {served.url}"
    node.fetch(caches, f"{registry.public_key} {served.cache.key.public}", *paths)
    assert node.all_paths() == set(paths)
    image = copy_from_registry(f"{registry.host}/nix-snapshotter/secretsauce:latest", directory / "layout")
    mounts = {path: node.shown(path) for path in paths}
    assert unpack(image, directory / "bundle").run("secretsauce", mounts=mounts) == "tomatoes\n"


@pytest.mark.parametrize("clients", ["", "client_substituters = ['own']\n"])
def test_nothing_is_served_that_clients_could_not_fetch(
    empty_store: ChrootStore,
    private_source: Path,
    served: Served,
    directory: Path,
    start: Start,
    clients: str,
) -> None:
    registry = Registry(directory / "state", empty_store.root, private_source)
    registry.substituters = [served.substituter()]
    registry.config = f"[binary_cache]\npublish = 'off'\n{clients}"
    start(registry)
    answer = registry.manifest("nix-snapshotter/secretsauce")
    assert answer.status == 404
    assert only(empty_store, private_source, "secretsauce") in answer.error["message"]
    assert "publish" in answer.error["message"]
    hello = only(empty_store, private_source, "hello")
    expected = 404 if clients else 200
    assert registry.manifest("nix-snapshotter/hello").status == expected
    assert registry.pull("secretsauce").layers, "classic images need no cache"
    assert registry.get(f"/nix-cache/{hash_part(hello)}.narinfo").status == 404


@pytest.mark.parametrize("setting", ["publish = 'all'", "client_substituters = ['own']"])
def test_clients_of_our_cache_alone_get_what_another_cache_has(
    cold: Registry, served: Served, start: Start, make_node: MakeNode, setting: str
) -> None:
    """As all of it is published, or what is missing where they look."""
    cold.substituters = [served.substituter()]
    cold.config = f"[binary_cache]\n{setting}\n"
    paths = image_paths(start(cold), "git")
    node = make_node()
    node.fetch(cold.cache_url, cold.public_key, *paths)
    assert node.all_paths() == set(paths)
