"""The index through the server and the commands."""

import json
from pathlib import Path

from tests.integration.caches import CacheDirectory
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import run
from tests.integration.server import PROGRAM, Registry, Start, Substituter

PUBLISHED = ["hello", "shell/curl", "openssl.dev/python3packages.requests", "7zz"]


def test_a_server_without_nix(
    directory: Path, own_store: ChrootStore, full_cache: CacheDirectory, start: Start
) -> None:
    """With an index and a binary cache that has everything, no program of Nix's is needed."""
    cache = Substituter(f"file://{full_cache.root}", [full_cache.key.public])
    registry = Registry(directory / "state", own_store.root, substituters=[cache])
    registry.state.mkdir()
    made = run(*PROGRAM, "index", *registry.options, env=registry.program_env)
    assert " packages" in made.stdout
    # Neither Nix nor its store.
    registry.store = directory / "no-store"
    registry.env["PATH"] = str(directory / "nothing")
    start(registry)
    for name in PUBLISHED:
        for form in ("classic", "nix-snapshotter"):
            registry.pull(f"{form}/{name}")
    assert not registry.store.exists()
    for name, words in (
        ("helo", "did you mean hello"),
        ("requests", "python3Packages.requests"),
        ("hello.nosuch", "without Nix"),
    ):
        answer = registry.manifest(name)
        assert answer.status == 404
        assert words in answer.error["message"]
    found = registry.get("/api/v1/packages?q=requests").json()
    assert "python3Packages.requests" in [package["attribute"] for package in found["packages"]]


def test_commands(directory: Path, own_store: ChrootStore) -> None:
    registry = Registry(directory / "state", own_store.root)
    registry.state.mkdir()
    nothing = run(*PROGRAM, "search", "hello", *registry.options, env=registry.program_env, check=False)
    assert nothing.returncode == 1
    assert "nixery-snap index" in nothing.stderr
    first = run(*PROGRAM, "index", *registry.options, env=registry.program_env)
    again = run(*PROGRAM, "index", *registry.options, env=registry.program_env)
    assert first.stdout == again.stdout
    found = run(*PROGRAM, "search", "hello", *registry.options, env=registry.program_env).stdout
    assert found.splitlines()[0].startswith("hello ")
    file = directory / "popularity.json"
    run(*PROGRAM, "popularity", "--output", file, *registry.options, env=registry.program_env)
    assert json.loads(file.read_text())["glibc"] > 1
