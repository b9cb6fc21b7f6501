"""The key that signs what we publish, and the commands and pages that tell of it."""

import base64
import re
import stat
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.integration.caches import KeyPair, Served, hash_part
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import output_of, run
from tests.integration.server import PROGRAM, Registry, Start


def call(registry: Registry, *arguments: str, check: bool = True) -> "CompletedProcess[str]":
    return run(*PROGRAM, *arguments, *registry.options, env=registry.program_env, check=check)


def key_file(registry: Registry) -> Path:
    return registry.storage_directory / "secrets" / "signing-key"


def test_a_key_is_made_at_first_start_and_kept(
    prepared_store: ChrootStore, directory: Path, start: Start
) -> None:
    registry = Registry(directory / "state", prepared_store.root).start()
    public = registry.public_key
    file = key_file(registry)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) & 0o077 == 0
    name, _, secret = file.read_text().partition(":")
    assert len(base64.b64decode(secret)) == 64
    assert public.startswith(f"{name}:")
    derived = run("nix", "key", "convert-secret-to-public", stdin=file.read_text(), env=prepared_store.env)
    assert derived.stdout.strip() == public
    assert registry.stop() == 0
    assert start(registry).public_key == public
    assert file.read_text() == f"{name}:{secret}"


def test_a_key_of_nix(prepared_store: ChrootStore, directory: Path, start: Start) -> None:
    """As an administrator makes it."""
    pair = KeyPair.generate(directory / "key", "example.org-1")
    registry = Registry(directory / "state", prepared_store.root)
    registry.config = f"[binary_cache]\nsigning_key_file = '{pair.file}'\n"
    start(registry)
    assert registry.public_key == pair.public
    assert not key_file(registry).exists()
    registry.pull("nix-snapshotter/hello")
    [hello] = prepared_store.installed(("hello",))["hello"]
    narinfo = registry.get(f"/nix-cache/{hash_part(hello)}.narinfo").body.decode()
    assert "\nSig: example.org-1:" in narinfo


def test_a_key_that_systemd_keeps(prepared_store: ChrootStore, directory: Path, start: Start) -> None:
    """A credential's directory is the service's alone; the file has an ACL, which shows as rights of the group."""
    pair = KeyPair.generate(directory / "key")
    pair.file.chmod(0o440)
    registry = Registry(directory / "state", prepared_store.root)
    registry.config = f"[binary_cache]\nsigning_key_file = '{pair.file}'\n"
    registry.env["CREDENTIALS_DIRECTORY"] = str(pair.file.parent)
    start(registry)
    assert registry.public_key == pair.public


def test_a_key_that_others_can_read_is_refused(prepared_store: ChrootStore, directory: Path) -> None:
    pair = KeyPair.generate(directory / "key")
    pair.file.chmod(0o644)
    registry = Registry(directory / "state", prepared_store.root)
    registry.config = f"[binary_cache]\nsigning_key_file = '{pair.file}'\n"
    with pytest.raises(AssertionError, match=r"signing_key_file.*chmod 600") as raised:
        registry.start()
    assert pair.secret not in str(raised.value)


def test_the_public_key_is_where_people_look(registry: Registry) -> None:
    key = registry.public_key
    assert re.fullmatch(r"[^:\s]+:[A-Za-z0-9+/]{43}=", key)
    page = registry.get("/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/")
    assert key in page.body.decode()
    assert key in registry.log.read_text()


def test_the_secret_is_nowhere_else(registry: Registry) -> None:
    registry.pull("nix-snapshotter/hello")
    secret = key_file(registry).read_text().partition(":")[2].strip()
    seed = base64.b64encode(base64.b64decode(secret)[:32]).decode().rstrip("=")
    hexadecimal = base64.b64decode(secret)[:32].hex()
    assert not any(part in registry.log.read_text() for part in (secret, seed, hexadecimal))
    targets = [
        "/",
        "/nix-cache/",
        "/nix-cache/secrets/signing-key",
        "/nix-cache/nar/../secrets/signing-key",
        "/nix-cache/nar/..%2fsecrets%2fsigning-key",
        "/nix-cache/nar/%2e%2e/secrets/signing-key",
        "/nix-cache/log/../secrets/signing-key",
        "/nix-cache/log/..%2Fsecrets%2Fsigning-key",
        "/nix-cache/log/..%2Fsecrets%2Fsigning-key.drv",
        "/nix-cache//secrets/signing-key",
        "/secrets/signing-key",
        "/v2/secrets/blobs/signing-key",
        "/v2/../secrets/signing-key",
    ]
    for target in targets:
        answer = registry.get(target)
        assert seed.encode() not in answer.body, target
        assert target == "/" or answer.status in {400, 404}, (target, answer)
    shown = call(registry, "node-config").stdout
    assert seed not in shown


def test_settings_of_a_node(registry: Registry, prepared_store: ChrootStore, directory: Path) -> None:
    """As it prints it, real Nix takes it."""
    environment = {**registry.program_env, "NIXERY_SNAP_BINARY_CACHE__PUBLIC_URL": registry.cache_url}
    shown = run(*PROGRAM, "node-config", *registry.options, env=environment).stdout
    for expected in (registry.public_key, registry.cache_url, "containerd", "kubelet", "nix.conf"):
        assert expected in shown, expected
    lines = [line.strip() for line in shown.splitlines()]
    settings = [line for line in lines if re.match(r"(extra-)?(substituters|trusted-public-keys) = ", line)]
    assert len(settings) == 2
    registry.pull("nix-snapshotter/hello")
    [hello] = prepared_store.installed(("hello",))["hello"]
    node = ChrootStore.create(directory / "node")
    configuration = "\n".join(["build-users-group =", "require-sigs = true", "substituters =", *settings])
    run(
        *["nix-store", "--store", str(node.root), "--option", "max-jobs", "0", "--realise", hello],
        env={**node.env, "NIX_CONFIG": configuration},
    )
    assert node.all_paths() == prepared_store.closure([hello])


# --- push -------------------------------------------------------------------------------------------


def test_push(prepared_store: ChrootStore, directory: Path, start: Start) -> None:
    """By hand and without a server; then a server has it."""
    registry = Registry(directory / "state", prepared_store.root)
    [git] = prepared_store.installed(("git",))["git"]
    done = call(registry, "push", git)
    count = len(prepared_store.closure([git]))
    assert done.stdout == f"published {count} of {count} store paths\n"
    start(registry)
    node = ChrootStore.create(directory / "node")
    node.fetch(registry.cache_url, registry.public_key, git)
    assert node.all_paths() == prepared_store.closure([git])


def test_push_knows_what_is_there_already(prepared_store: ChrootStore, directory: Path) -> None:
    registry = Registry(directory / "state", prepared_store.root)
    [hello] = prepared_store.installed(("hello",))["hello"]
    call(registry, "push", hello)
    files = {file: file.stat().st_mtime_ns for file in registry.storage_directory.rglob("*.nar.*")}
    assert len(files) == len(prepared_store.closure([hello]))
    call(registry, "push", hello)
    assert {file: file.stat().st_mtime_ns for file in registry.storage_directory.rglob("*.nar.*")} == files


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nix/store/00000000000000000000000000000000-absent", ["00000000000000000000000000000000-absent"]),
        ("/etc/passwd", ["/etc/passwd"]),
        ("hello", ["hello"]),
    ],
)
def test_push_of_what_cannot_be(
    prepared_store: ChrootStore, directory: Path, path: str, words: list[str]
) -> None:
    registry = Registry(directory / "state", prepared_store.root)
    done = call(registry, "push", path, check=False)
    assert done.returncode != 0
    assert "Traceback" not in output_of(done)
    assert [word for word in words if word not in output_of(done)] == []


def test_push_all_or_what_is_missing(prepared_store: ChrootStore, served: Served, directory: Path) -> None:
    registry = Registry(directory / "state", prepared_store.root, substituters=[served.substituter()])
    [hello] = prepared_store.installed(("hello",))["hello"]
    call(registry, "push", hello)
    assert not list(registry.storage_directory.glob("*.narinfo")), "the other cache has it"
    call(registry, "push", "--all", hello)
    there = {file.stem for file in registry.storage_directory.glob("*.narinfo")}
    assert there == {hash_part(path) for path in prepared_store.closure([hello])}
