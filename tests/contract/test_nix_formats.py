"""What we write Nix reads, what Nix writes we read: every format of binary caches, against Nix itself."""

import base64
import hashlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from nixery_snap.nix import base32, listing, nar
from nixery_snap.nix.content_address import ContentAddress, flat_hash, recomputes, store_path
from nixery_snap.nix.file_tree import Directory, Regular, Symlink, tree_of
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.signing import PublicKey, SecretKey, signers, verified_by
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.local_store import StoreDatabase, StoreFiles
from tests.integration.nixtools import ChrootStore, Entry
from tests.integration.nixtools import tree_of as files_of
from tests.integration.processes import CommandError
from tests.unit.nix.trees import File, Link, Tree, entries_of, trees

ODD: Tree = {
    b"bin": {b"run": File(b"#!/bin/sh\n", executable=True), b"\xff\xfe": File(b"x" * 8)},
    b"empty": {},
    b"large": File(bytes(range(256)) * 2000),
    b"link": Link(b"bin/\xff\xfe"),
    b"a": {b"b": File()},
    b"a-b": File(b"sorts before a/b, comes after it"),
    b"a.b": Link(b"../../outside"),
    "é".encode(): File(b"\0"),
    b"Z": File(b"1234567"),
}


def dumped(path: Path) -> bytes:
    return subprocess.run(["nix-store", "--dump", path], check=True, capture_output=True).stdout


def restored(content: bytes, path: Path) -> dict[bytes, Entry]:
    subprocess.run(["nix-store", "--restore", path], check=True, input=content)
    return files_of(path)


def expected(tree: Tree) -> dict[bytes, Entry]:
    found: dict[bytes, Entry] = {}
    for entry in entries_of(tree):
        content = b"".join(entry.content)
        if isinstance(entry.node, Regular):
            found[entry.name] = Entry("executable" if entry.node.executable else "regular", content)
        elif isinstance(entry.node, Directory):
            found[entry.name] = Entry("directory")
        else:
            found[entry.name] = Entry("symlink", os.fsencode(entry.node.target))
    return found


def read(content: bytes) -> dict[bytes, Entry]:
    """What our reader makes of an archive."""
    chunks = (content[start : start + 1000] for start in range(0, len(content), 1000))
    found: dict[bytes, Entry] = {}
    for entry in nar.read(chunks):
        held = b"".join(entry.content)
        match entry.node:
            case Regular(size_bytes, executable):
                assert size_bytes == len(held)
                found[entry.name] = Entry("executable" if executable else "regular", held)
            case Directory():
                found[entry.name] = Entry("directory")
            case link:
                found[entry.name] = Entry("symlink", os.fsencode(link.target))
    return found


def nar_hash(content: bytes) -> str:
    return f"sha256:{base32.encode(hashlib.sha256(content).digest())}"


# --- NARs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [ODD, File(b"x"), File(b"", executable=True), Link(b"to/\xff"), {}])
def test_nars_of_odd_trees(tree: Tree, tmp_path: Path, prepared: ChrootStore) -> None:
    content = b"".join(nar.write(entries_of(tree)))
    assert restored(content, tmp_path / "tree") == expected(tree)
    assert dumped(tmp_path / "tree") == content
    assert read(content) == expected(tree)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_nars_of_any_tree(
    tree: Tree, tmp_path_factory: pytest.TempPathFactory, prepared: ChrootStore
) -> None:
    content = b"".join(nar.write(entries_of(tree)))
    path = tmp_path_factory.mktemp("restored") / "tree"
    assert restored(content, path) == expected(tree)
    assert dumped(path) == content


async def test_nars_of_store_paths(prepared: ChrootStore) -> None:
    """The local store's own entries, packed, have the hash in its database."""
    database = StoreDatabase(prepared.root / "nix/var/nix/db/db.sqlite")
    infos = await database.path_infos(sorted(map(StorePath.parse, prepared.all_paths())))
    assert len(infos) > 10
    for path, info in infos.items():
        content = b"".join(nar.write(StoreFiles(prepared.root).entries(info)))
        assert (nar_hash(content), len(content)) == (info.nar_hash, info.nar_size), path
        assert dumped(prepared.physical(str(path))) == content
        assert read(content) == files_of(prepared.physical(str(path)))


# --- caches that Nix writes -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def nix_key(tmp_path_factory: pytest.TempPathFactory, prepared: ChrootStore) -> Path:
    file = tmp_path_factory.mktemp("key") / "secret"
    command = ["nix", "key", "generate-secret", "--key-name", "test.example-1"]
    file.write_bytes(subprocess.run(command, check=True, capture_output=True, env=prepared.env).stdout)
    return file


@pytest.fixture(scope="session")
def key(nix_key: Path) -> SecretKey:
    return SecretKey.parse(nix_key.read_text())


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, prepared: ChrootStore, nix_key: Path) -> Path:
    """A cache of everything, signed and with listings."""
    cache = tmp_path_factory.mktemp("cache") / "cache"
    url = f"file://{cache}?compression=none&write-nar-listing=1&secret-key={nix_key}"
    prepared.run("nix", "copy", "--all", "--to", url)
    return cache


def narinfos(cache: Path) -> dict[str, NarInfo]:
    return {
        str(narinfo.info.path): narinfo
        for file in cache.glob("*.narinfo")
        for narinfo in [NarInfo.parse(file.read_bytes())]
    }


def test_keys(nix_key: Path, prepared: ChrootStore) -> None:
    text = nix_key.read_text()
    key = SecretKey.parse(text)
    assert key.text == text.strip()
    ours = SecretKey.generate("ours-1")
    for secret, public in ((text, key.public_key), (ours.text, ours.public_key)):
        command = ["nix", "key", "convert-secret-to-public"]
        found = subprocess.run(
            command, check=True, capture_output=True, input=secret.encode(), env=prepared.env
        )
        assert PublicKey.parse(found.stdout.decode()) == public
        assert found.stdout.decode() == str(public)


async def test_narinfos_that_nix_writes(prepared: ChrootStore, written: Path, key: SecretKey) -> None:
    found = narinfos(written)
    assert found.keys() == prepared.all_paths()
    database = StoreDatabase(prepared.root / "nix/var/nix/db/db.sqlite")
    local = await database.path_infos(list(map(StorePath.parse, found)))
    for path, narinfo in found.items():
        info = narinfo.info
        assert verified_by(info, [key.public_key]) == key.public_key
        assert signers(info) == ("test.example-1",)
        assert info.signatures == (key.sign(info),)
        assert replace(info, signatures=()) == replace(local[info.path], signatures=())
        content = (written / narinfo.url).read_bytes()
        assert (nar_hash(content), len(content)) == (info.nar_hash, info.nar_size)
        assert (narinfo.file_hash, narinfo.file_size) == (info.nar_hash, info.nar_size)
        assert bytes(narinfo) == (written / f"{info.path.hash_part}.narinfo").read_bytes()
        assert NarInfo.parse(bytes(narinfo)) == narinfo
        with (written / narinfo.url).open("rb") as file:
            root = nar.root(iter(lambda: file.read(8), b""))
        physical = prepared.physical(path)
        assert isinstance(root, Symlink) == physical.is_symlink()
        assert isinstance(root, Directory) == (physical.is_dir() and not physical.is_symlink())


def test_listings_that_nix_writes(written: Path) -> None:
    for narinfo in narinfos(written).values():
        content = (written / narinfo.url).read_bytes()
        tree = tree_of((entry.name, entry.node) for entry in nar.read(iter([content])))
        text = (written / f"{narinfo.info.path.hash_part}.ls").read_bytes()
        assert listing.parse(text) == tree
        offsets: dict[bytes, int] = {}
        assert b"".join(nar.write(nar.read(iter([content])), offsets)) == content
        assert as_json(listing.encode(tree, offsets)) == as_json(text)


def as_json(text: bytes) -> Any:
    return json.loads(text.decode("utf-8", "surrogateescape"))


def test_a_listing_as_nix_shows_it(tmp_path: Path, prepared: ChrootStore) -> None:
    file = tmp_path / "odd.nar"
    offsets: dict[bytes, int] = {}
    file.write_bytes(b"".join(nar.write(entries_of(ODD), offsets)))
    shown = prepared.run("nix", "nar", "ls", "--json", "--recursive", file, "/")
    tree = tree_of((entry.name, entry.node) for entry in entries_of(ODD))
    assert as_json(listing.encode(tree, offsets))["root"] == json.loads(shown)


# --- caches that we write ---------------------------------------------------------------------------


def publish(cache: Path, tree: Tree, info: PathInfo, key: SecretKey | None) -> NarInfo:
    """Write a path into a cache of ours, in which its NAR hash and size are made right."""
    cache.mkdir(exist_ok=True)
    (cache / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    (cache / "nar").mkdir(exist_ok=True)
    offsets: dict[bytes, int] = {}
    content = b"".join(nar.write(entries_of(tree), offsets))
    info = replace(info, nar_hash=nar_hash(content), nar_size=len(content))
    if key:
        info = replace(
            info, signatures=("someone.else-1:" + base64.b64encode(bytes(64)).decode(), key.sign(info))
        )
    narinfo = NarInfo(info, f"nar/{info.path.hash_part}.nar", "none", info.nar_hash, info.nar_size)
    (cache / narinfo.url).write_bytes(content)
    nodes = tree_of((entry.name, entry.node) for entry in entries_of(tree))
    (cache / f"{info.path.hash_part}.ls").write_bytes(listing.encode(nodes, offsets))
    (cache / f"{info.path.hash_part}.narinfo").write_bytes(bytes(narinfo))
    return narinfo


def fetch(store: ChrootStore, cache: Path, key: PublicKey | None, path: StorePath) -> None:
    """As a node does, with signatures required."""
    trusted = ["--option", "trusted-public-keys", str(key) if key else ""]
    options = ["--option", "require-sigs", "true", "--option", "substituters", f"file://{cache}", *trusted]
    store.run("nix-store", *options, "--option", "max-jobs", "0", "--realise", str(path))


@pytest.fixture
def empty(tmp_path: Path, prepared: ChrootStore) -> ChrootStore:
    return ChrootStore.create(tmp_path / "empty")


def some_path(name: str) -> StorePath:
    return StorePath(base32.encode(hashlib.sha256(name.encode()).digest()[:20]), name)


def test_signed_paths_that_nix_fetches(tmp_path: Path, empty: ChrootStore) -> None:
    cache, key = tmp_path / "ours", SecretKey.generate("ours.example-1")
    library, program = some_path("library-1"), some_path("program-1")
    publish(cache, ODD, PathInfo(library, "", 0, (library,), some_path("library-1.drv")), key)
    uses: Tree = File(str(library).encode(), executable=True)
    narinfo = publish(cache, uses, PathInfo(program, "", 0, tuple(sorted((library, program)))), key)
    fetch(empty, cache, key.public_key, program)
    assert empty.all_paths() == {str(library), str(program)}
    assert files_of(empty.physical(str(library))) == expected(ODD)
    assert files_of(empty.physical(str(program))) == expected(uses)

    (said,) = json.loads(empty.run("nix", "path-info", "--json", "--sigs", str(program)))
    assert said["narHash"] == "sha256-" + base64.b64encode(sha256_of(narinfo.info)).decode()
    assert said["narSize"] == narinfo.info.nar_size
    assert said["references"] == sorted(map(str, (library, program)))
    shown = empty.run(
        "nix", "store", "ls", "--json", "--recursive", "--store", f"file://{cache}", f"{program}"
    )
    assert json.loads(shown)["size"] == len(str(library))


def sha256_of(info: PathInfo) -> bytes:
    return base32.decode(info.nar_hash.removeprefix("sha256:"), 32)


def test_what_nix_signs_after_us(tmp_path: Path, empty: ChrootStore, nix_key: Path) -> None:
    cache, key = tmp_path / "ours", SecretKey.generate("ours.example-1")
    path = some_path("signed-twice")
    publish(cache, File(b"x"), PathInfo(path, "", 0, ()), key)
    fetch(empty, cache, key.public_key, path)
    empty.run("nix", "store", "sign", "--key-file", nix_key, str(path))
    empty.run("nix", "copy", "--to", f"file://{tmp_path / 'theirs'}", str(path))
    (narinfo,) = narinfos(tmp_path / "theirs").values()
    theirs = SecretKey.parse(nix_key.read_text()).public_key
    assert set(signers(narinfo.info)) >= {"ours.example-1", "test.example-1"}
    assert verified_by(narinfo.info, [key.public_key]) == key.public_key
    assert verified_by(narinfo.info, [theirs]) == theirs
    assert narinfo.compression == "xz"


def test_nix_refuses_what_we_would_refuse(tmp_path: Path, empty: ChrootStore) -> None:
    """So that the test above proves something."""
    cache, key = tmp_path / "ours", SecretKey.generate("ours.example-1")
    path = some_path("signed")
    publish(cache, File(b"x"), PathInfo(path, "", 0, ()), key)
    stranger = SecretKey.generate("ours.example-1").public_key
    with pytest.raises(CommandError, match="not signed by any of the keys"):
        fetch(empty, cache, stranger, path)
    assert empty.all_paths() == set()


def content_addressed(tree: Tree, name: str, *references: StorePath) -> PathInfo:
    content = b"".join(nar.write(entries_of(tree)))
    address = ContentAddress.parse(f"fixed:r:{nar_hash(content)}")
    return PathInfo(store_path(name, address, references), "", 0, references, content_address=str(address))


def test_content_addressed_paths_that_nix_fetches_unsigned(tmp_path: Path, empty: ChrootStore) -> None:
    cache = tmp_path / "ours"
    first = publish(cache, {b"file": File(b"x")}, content_addressed({b"file": File(b"x")}, "first"), None)
    tree: Tree = {b"store-paths": File(f"{first.info.path}\n".encode())}
    second = publish(cache, tree, content_addressed(tree, "closure-info", first.info.path), None)
    assert recomputes(first.info)
    assert recomputes(second.info)
    fetch(empty, cache, None, second.info.path)
    assert empty.all_paths() == {str(first.info.path), str(second.info.path)}


# --- content addresses that Nix makes ---------------------------------------------------------------


async def info_of(store: ChrootStore, path: str) -> PathInfo:
    database = StoreDatabase(store.root / "nix/var/nix/db/db.sqlite")
    found = StorePath.parse(path.strip())
    return (await database.path_infos([found]))[found]


async def test_added_directories(tmp_path: Path, empty: ChrootStore) -> None:
    restored(b"".join(nar.write(entries_of(ODD))), tmp_path / "odd")
    info = await info_of(empty, empty.run("nix-store", "--add", tmp_path / "odd"))
    assert (info.content_address or "").startswith("fixed:r:sha256:")
    assert recomputes(info)
    assert flat_hash(info) is None
    assert info.path == content_addressed(ODD, "odd").path


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
@pytest.mark.parametrize("recursive", [True, False])
async def test_fixed_outputs(tmp_path: Path, empty: ChrootStore, algorithm: str, recursive: bool) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"some content\n")
    options = ["--recursive"] if recursive else []
    info = await info_of(empty, empty.run("nix-store", *options, "--add-fixed", algorithm, file))
    address = ContentAddress.parse(info.content_address or "")
    assert str(address) == info.content_address
    hashed = dumped(file) if recursive else file.read_bytes()
    assert address.hash.value == hashlib.new(algorithm, hashed, usedforsecurity=False).digest()
    assert store_path("file", address) == info.path
    assert recomputes(info) == (algorithm == "sha256")
    expected_hash = hashlib.sha256(hashed).digest() if algorithm == "sha256" and not recursive else None
    assert flat_hash(info) == expected_hash


async def test_texts_with_references(empty: ChrootStore) -> None:
    expression = 'let a = builtins.toFile "a" "first"; in builtins.toFile "b.txt" "${a} ${builtins.toFile "c" "third"}"'
    path = json.loads(empty.run("nix-instantiate", "--eval", "--json", "--read-write-mode", "-E", expression))
    info = await info_of(empty, path)
    assert len(info.references) == 2
    assert (info.content_address or "").startswith("text:sha256:")
    assert recomputes(info)
    assert flat_hash(info) == hashlib.sha256(empty.physical(path).read_bytes()).digest()
    assert not recomputes(replace(info, references=info.references[:1]))
    derivations = [path for path in empty.all_paths() if path.endswith(".drv")]
    assert not derivations


async def test_derivations_are_texts(prepared: ChrootStore) -> None:
    """All of them, with all their references."""
    derivations = [path for path in sorted(prepared.all_paths()) if path.endswith(".drv")]
    assert derivations
    for path in derivations:
        info = await info_of(prepared, path)
        assert recomputes(info)
        assert flat_hash(info) == hashlib.sha256(prepared.physical(path).read_bytes()).digest()


async def test_self_references(own_store: ChrootStore) -> None:
    """Nix itself rewrites paths to content-addressed ones, and finds self-references while it does."""
    referring = [
        path
        for path in sorted(own_store.all_paths())
        if path in own_store.run("nix-store", "-q", "--references", path).split()
    ]
    assert referring
    options = ["--extra-experimental-features", "ca-derivations"]
    own_store.run("nix", "store", "make-content-addressed", *options, *referring)
    checked = 0
    for path in sorted(own_store.all_paths()):
        info = await info_of(own_store, path)
        if not (info.content_address or "").startswith("fixed:r:sha256:"):
            continue
        others = [reference for reference in info.references if reference != info.path]
        self_reference = len(others) < len(info.references)
        address = ContentAddress.parse(info.content_address or "")
        assert store_path(info.path.name, address, others, self_reference) == info.path
        assert recomputes(info) != self_reference
        checked += self_reference
    assert checked
