"""Our own binary cache, asked by real Nix from machines that know no other; keys are enforced."""

import json
from pathlib import Path

from tests.integration.caches import KeyPair
from tests.integration.conftest import MakeNode
from tests.integration.images import image_paths
from tests.integration.nixtools import ChrootStore, add_package, client_options, only, tree_of
from tests.integration.processes import output_of
from tests.integration.server import Registry, Start


def test_one_extra_substituter_is_enough(
    registry: Registry, prepared_store: ChrootStore, make_node: MakeNode
) -> None:
    """Nothing but our cache and our key: every path, as it is where it was built."""
    paths = image_paths(registry, "shell/git/weirdnames/symlinkpath/singlefile/emptydir")
    node = make_node()
    node.fetch(registry.cache_url, registry.public_key, *paths)
    assert node.all_paths() == set(paths)
    for path in paths:
        assert tree_of(node.physical(path)) == tree_of(prepared_store.physical(path)), path
    trusted = ["--option", "trusted-public-keys", registry.public_key]
    node.run("nix", "store", "verify", *trusted, "--sigs-needed", "1", *paths)


def test_keys_are_enforced(registry: Registry, directory: Path, make_node: MakeNode) -> None:
    paths = image_paths(registry, "hello")
    node = make_node()
    stranger = KeyPair.generate(directory / "stranger", registry.public_key.partition(":")[0])
    done = node.fetch(registry.cache_url, stranger.public, *paths, check=False)
    assert done.returncode != 0, output_of(done)
    assert node.all_paths() == set()


def test_nix_copy(registry: Registry, make_node: MakeNode) -> None:
    paths = image_paths(registry, "curl")
    node = make_node()
    options = client_options("", registry.public_key)
    node.run("nix", "copy", "--from", registry.cache_url, *options, *paths)
    assert node.all_paths() == set(paths)


def path_infos(text: str) -> dict[str, dict[str, object]]:
    """Of `nix path-info --json`: a list at first, by path since Nix 2.19."""
    parsed = json.loads(text)
    return parsed if isinstance(parsed, dict) else {info["path"]: info for info in parsed}


def test_nix_asks_about_paths(registry: Registry, prepared_store: ChrootStore, make_node: MakeNode) -> None:
    paths = image_paths(registry, "curl")
    node = make_node()
    shown = node.attempt("nix", "path-info", "--json", "--store", registry.cache_url, *paths).stdout
    infos = path_infos(shown)
    expected = path_infos(prepared_store.run("nix", "path-info", "--json", *paths))
    assert infos.keys() == set(paths)
    name = registry.public_key.partition(":")[0]
    for path, info in infos.items():
        assert info["narSize"] == expected[path]["narSize"]
        assert sorted(info["references"]) == sorted(expected[path]["references"])  # type: ignore[call-overload]
        assert info.get("deriver") == expected[path].get("deriver")
        assert any(str(one).startswith(f"{name}:") for one in info["signatures"])  # type: ignore[attr-defined]
    trusted = ["--option", "trusted-public-keys", registry.public_key, "--sigs-needed", "1"]
    node.attempt("nix", "store", "verify", "--store", registry.cache_url, *trusted, *paths)
    [curl] = prepared_store.installed(("curl",))["curl"]
    listed = node.attempt("nix", "store", "ls", "--store", registry.cache_url, "--recursive", curl).stdout
    assert "./bin/curl" in listed
    content = node.attempt("nix", "store", "cat", "--store", registry.cache_url, f"{curl}/bin/curl").stdout
    assert content == (prepared_store.physical(curl) / "bin" / "curl").read_text()


def test_nix_log(
    empty_store: ChrootStore, own_source: Path, directory: Path, start: Start, make_node: MakeNode
) -> None:
    add_package(own_source, "talkative", "echo building with care; mkdir $out")
    registry = start(Registry(directory / "state", empty_store.root, own_source))
    image_paths(registry, "talkative")
    talkative = only(empty_store, own_source, "talkative")
    done = make_node().attempt("nix", "log", "--store", registry.cache_url, talkative)
    assert done.stdout == "building with care\n"


def test_the_object_store_is_a_substituter_by_itself(registry: Registry, make_node: MakeNode) -> None:
    """Without a server: the bucket will do."""
    paths = image_paths(registry, "git")
    node = make_node()
    node.fetch(f"file://{registry.storage_directory}", registry.public_key, *paths)
    assert node.all_paths() == set(paths)
