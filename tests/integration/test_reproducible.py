"""Same name, same revision, same bytes: whichever process, store, order of names."""

import json
from pathlib import Path

from tests.integration.nixtools import ChrootStore
from tests.integration.processes import run
from tests.integration.server import PROGRAM, Registry, Start

# Each image by two names. Never bigBlob: its build is random.
NAMES = [
    ("hello", "hello"),
    ("shell/hello/curl", "shell/curl/hello/curl"),
    ("nix-snapshotter/shell/hello/curl", "nix-snapshotter/shell/curl/curl/hello"),
    ("git/python3packages.requests/wide", "wide/git/python3packages.requests"),
    ("nix-snapshotter/wide/git", "nix-snapshotter/git/wide"),
    (
        "conflicta/conflictb/conflictc/weirdnames/manyfiles",
        "weirdnames/conflictc/manyfiles/conflictb/conflicta",
    ),
    ("arm64/hello", "arm64/hello"),
]


def test_two_fresh_registries_serve_the_same_bytes(
    directory: Path, own_store: ChrootStore, empty_store: ChrootStore, start: Start
) -> None:
    """One has every package built already, the other builds them itself, elsewhere."""
    patient = "[nix]\nwait_timeout = 110\n"
    one = start(Registry(directory / "one", own_store.root, storage="memory://", config=patient))
    other = start(Registry(directory / "other", empty_store.root, config=patient))
    for name, same in NAMES:
        first, second = one.pull(name), other.pull(same)
        assert first.manifest_bytes == second.manifest_bytes, (first.manifest, second.manifest)
        assert first.blobs == second.blobs
    assert digest_of_build(other, "shell/curl/hello", directory) == one.pull("shell/hello/curl").digest


def digest_of_build(registry: Registry, name: str, directory: Path) -> str:
    """The digest of the image when the command line makes it, in a third process and a new object store."""
    storage = f"file://{directory / 'third'}"
    layout = directory / "layout"
    command = ["build", name, *registry.options, "--storage", storage, "--output", f"oci:{layout}"]
    run(*PROGRAM, *command, env=registry.program_env)
    index = json.loads((layout / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def test_a_restart_changes_nothing_and_makes_nothing_anew(
    directory: Path, prepared_store: ChrootStore, start: Start
) -> None:
    registry = start(Registry(directory / "state", prepared_store.root))
    names = ["shell/hello", "nix-snapshotter/shell/hello"]
    before = [registry.pull(name) for name in names]
    evaluated, assembled = len(registry.events("evaluated")), len(registry.events("assembled"))
    assert registry.stop() == 0
    registry.start()
    assert [registry.pull(name) for name in names] == before
    assert len(registry.events("evaluated")) == evaluated
    assert len(registry.events("assembled")) == assembled
