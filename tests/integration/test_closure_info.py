"""One path that brings a whole closure, and how images name it."""

import re
from pathlib import Path

import pytest

from tests.integration.caches import Served
from tests.integration.conftest import MakeNode
from tests.integration.images import CLOSURE, annotated_paths
from tests.integration.nixtools import ChrootStore, tree_of
from tests.integration.server import Registry, Start


def test_one_path_brings_the_whole_closure(
    registry: Registry, prepared_store: ChrootStore, make_node: MakeNode
) -> None:
    layer = registry.manifest("nix-snapshotter/shell/wide").json()["layers"][0]
    paths, closure_info = annotated_paths(layer), layer["annotations"][CLOSURE]
    node = make_node()
    node.fetch(registry.cache_url, registry.public_key, closure_info)
    assert node.all_paths() == {*paths, closure_info}
    assert set(tree_of(node.physical(closure_info))) == {b"", b"store-paths"}
    listed = (node.physical(closure_info) / "store-paths").read_text()
    assert listed == "".join(f"{path}\n" for path in sorted(paths))
    assert set(paths) == prepared_store.closure(paths)


def test_a_closure_info_needs_no_key_of_ours(
    empty_store: ChrootStore, served: Served, directory: Path, start: Start, make_node: MakeNode
) -> None:
    """It is addressed by its content; what it refers to is signed by those who built that."""
    registry = start(Registry(directory / "state", empty_store.root, substituters=[served.substituter()]))
    layer = registry.manifest("nix-snapshotter/git").json()["layers"][0]
    node = make_node()
    node.fetch(f"{registry.cache_url} {served.url}", served.cache.key.public, layer["annotations"][CLOSURE])
    assert node.all_paths() == {*annotated_paths(layer), layer["annotations"][CLOSURE]}


@pytest.mark.parametrize(
    ("settings", "legacy", "closure"),
    [
        ("", True, True),
        ("annotations = 'auto'", True, True),
        ("annotations = 'both'", True, True),
        ("annotations = 'legacy'", True, False),
        ("annotations = 'closure'", False, True),
        ("client_substituters = ['{url}']", True, False),
        ("client_substituters = ['{url}', 'own']", True, True),
        ("enabled = false", True, False),
        ("publish = 'off'", True, False),
    ],
)
def test_annotations(
    empty_store: ChrootStore,
    served: Served,
    directory: Path,
    start: Start,
    settings: str,
    legacy: bool,
    closure: bool,
) -> None:
    registry = Registry(directory / "state", empty_store.root, substituters=[served.substituter()])
    registry.config = "[binary_cache]\n" + settings.format(url=served.url)
    layer = start(registry).manifest("nix-snapshotter/hello").json()["layers"][0]
    assert layer["annotations"]["containerd.io/snapshot/nix-layer"] == "true"
    assert bool(annotated_paths(layer)) is legacy
    assert (CLOSURE in layer["annotations"]) is closure
    done = registry.pull("nix-snapshotter/hello")
    assert done.layers == [layer]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("annotations = 'closure'\nclient_substituters = ['{url}']", ["annotations", "own"]),
        ("annotations = 'both'\nclient_substituters = ['{url}']", ["annotations", "own"]),
        ("annotations = 'closure'\nenabled = false", ["annotations", "enabled"]),
        ("annotations = 'closure'\npublish = 'off'", ["annotations", "publish"]),
        ("client_substituters = ['http://elsewhere.example']", ["client_substituters", "elsewhere"]),
        ("client_substituters = ['own']\nenabled = false", ["client_substituters", "enabled"]),
        ("upstreams = ['http://elsewhere.example']", ["upstreams", "elsewhere"]),
        ("publish = 'sometimes'", ["binary_cache.publish"]),
        ("signing_key_file = '/nonexistent/key'", ["signing_key_file", "/nonexistent/key"]),
        ("signing_key_file = '/dev/null'", ["signing_key_file"]),
    ],
)
def test_contradictions_are_refused_at_start(
    prepared_store: ChrootStore, served: Served, directory: Path, settings: str, words: list[str]
) -> None:
    registry = Registry(directory / "state", prepared_store.root, substituters=[served.substituter()])
    registry.config = "[binary_cache]\n" + settings.format(url=served.url)
    with pytest.raises(AssertionError) as raised:
        registry.start()
    said = str(raised.value)
    assert re.search(r"ended with status [1-9]", said), said
    assert "Traceback" not in said
    assert [word for word in words if word not in said] == [], said
