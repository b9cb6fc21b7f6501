"""Nix itself as the client, of a cache that Nix itself has written."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixery_snap.nix.store_path import StorePath
from tests.integration.need import need
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import CommandError, run
from tests.unit.binary_cache.caches import OfDirectory, serving_cache

LOG = "what the builder said\n"
LARGE_BYTES = 3_000_000


@dataclass(frozen=True)
class Published:
    source: ChrootStore
    root: str  # refers to `leaf`
    leaf: str
    directory: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    need("nix", "nix-store")
    home = tmp_path_factory.mktemp("published")
    source = ChrootStore.create(home / "source")
    leaf_file, root_file = home / "leaf", home / "root"
    leaf_file.write_bytes(os.urandom(LARGE_BYTES))
    leaf = source.run("nix-store", "--add", leaf_file).strip()
    expression = f"""
      builtins.toFile "root" "refers to ${{builtins.storePath {leaf}}}"
    """
    root_file.write_text(expression)
    root = source.run("nix", "eval", "--impure", "--raw", "--file", root_file).strip()
    directory = home / "cache"
    source.run("nix", "copy", "--to", f"file://{directory}?compression=zstd&write-nar-listing=1", root)
    (directory / "log").mkdir(exist_ok=True)
    return Published(source, root, leaf, directory)


@pytest.fixture
def url(published: Published) -> Iterator[str]:
    with serving_cache(OfDirectory(published.directory)) as server:
        host, port = server.address
        yield f"http://{host}:{port}/nix-cache"


@pytest.fixture
def node(tmp_path: Path) -> ChrootStore:
    return ChrootStore.create(tmp_path / "node")


def ask(node: ChrootStore, url: str, *arguments: str) -> str:
    """A command of Nix about the cache itself, not about the node's store."""
    return run("nix", *arguments, "--store", url, env=node.env).stdout


def test_path_info(published: Published, url: str, node: ChrootStore) -> None:
    assert set(ask(node, url, "path-info", "--recursive", published.root).split()) == {
        published.root,
        published.leaf,
    }
    ask(node, url, "store", "ping")
    with pytest.raises(CommandError, match="is not valid"):
        ask(node, url, "path-info", f"/nix/store/{'0' * 32}-absent")


def test_copy(published: Published, url: str, node: ChrootStore) -> None:
    node.run("nix", "copy", "--from", url, "--no-check-sigs", published.root)
    assert node.all_paths() == {published.root, published.leaf}
    assert node.physical(published.leaf).stat().st_size == LARGE_BYTES
    node.run("nix", "store", "verify", "--all", "--no-trust")


def test_realise(published: Published, url: str, node: ChrootStore) -> None:
    node.substitute(url, [published.root])
    assert node.closure([published.root]) == {published.root, published.leaf}


def test_reading_files_through_listings(published: Published, url: str, node: ChrootStore) -> None:
    assert ask(node, url, "store", "cat", published.root) == f"refers to {published.leaf}"


@pytest.mark.parametrize("name", ["plain", "a+b?c=d.e"], ids=["plain", "odd"])
def test_log(published: Published, url: str, node: ChrootStore, name: str) -> None:
    expression = f'derivation {{ name = "{name}"; system = "any"; builder = "/none"; }}'
    drv_path = node.run("nix-instantiate", "--expr", expression).strip()
    assert drv_path.endswith(f"-{name}.drv")
    asked = ("nix", "log", "--option", "substituters", url, drv_path)
    with pytest.raises(CommandError, match="is not available"):
        node.run(*asked)
    (published.directory / "log" / StorePath.parse(drv_path).base_name).write_text(LOG)
    assert node.run(*asked) == LOG


def test_nothing_can_be_copied_to_it(published: Published, url: str, tmp_path: Path) -> None:
    file = tmp_path / "new"
    file.write_text("new")
    added = published.source.run("nix-store", "--add", file).strip()
    with pytest.raises(CommandError, match="405"):
        published.source.run("nix", "copy", "--to", url, added)
