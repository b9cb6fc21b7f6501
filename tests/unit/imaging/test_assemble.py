import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nixery_snap.errors import UnmountablePath
from nixery_snap.imaging.assemble import NIX_LAYER, NIX_STORE_PATH
from nixery_snap.imaging.request import ImageFormat
from nixery_snap.imaging.validate import validate
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import Manifest
from tests.unit.images import PIN, ImageMaker, package, sample_store
from tests.unit.stores import FileStore, Run, To

CLASSIC, SNAPSHOTTER = ImageFormat.CLASSIC, ImageFormat.SNAPSHOTTER


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def config_of(maker: ImageMaker, manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b"".join(maker.blobs.read(manifest.config.digest)))
    return found


def members_of(maker: ImageMaker, manifest: Manifest) -> dict[str, tarfile.TarInfo]:
    """Of the topmost layer."""
    layer = gzip.decompress(b"".join(maker.blobs.read(manifest.layers[-1].digest)))
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return {member.name: member for member in archive}


@pytest.mark.parametrize("kind", list(ImageFormat))
async def test_images_are_valid_and_always_the_same(tmp_path: Path, kind: ImageFormat) -> None:
    made = []
    for number in range(2):
        store, tool = sample_store(tmp_path / str(number))
        maker = ImageMaker(store)
        manifest = await maker(kind, package(tool))
        assert validate(Digest.of(bytes(manifest)), maker.blobs.read) == manifest
        made.append(bytes(manifest))
    assert made[0] == made[1]


async def test_a_snapshotter_image_names_its_closure(tmp_path: Path) -> None:
    store, tool = sample_store(tmp_path)
    maker = ImageMaker(store)
    manifest = await maker(SNAPSHOTTER, package(tool))
    [layer] = manifest.layers
    assert layer.annotations == {
        NIX_LAYER: "true",
        **{f"{NIX_STORE_PATH}{number}": str(path) for number, path in enumerate(store.closure)},
    }
    members = members_of(maker, manifest)
    kinds = {path.name: members[str(path).strip("/")] for path in store.closure}
    assert {name: (member.type, oct(member.mode), member.size) for name, member in kinds.items()} == {
        "tool": (tarfile.DIRTYPE, "0o755", 0),
        "library": (tarfile.DIRTYPE, "0o755", 0),
        "link": (tarfile.DIRTYPE, "0o755", 0),  # of what it leads to
        "script": (tarfile.REGTYPE, "0o555", 0),
    }


@pytest.mark.parametrize("target", ["/etc", "nowhere", "../../../etc/passwd", "{base}"])
async def test_a_store_path_that_leads_nowhere_cannot_be_mounted(store: FileStore, target: str) -> None:
    bad = store.add("bad", To(target.format(base="bad")))
    tool = store.add("tool", {"bin": {"tool": Run()}}, bad)
    with pytest.raises(UnmountablePath) as raised:
        await ImageMaker(store)(SNAPSHOTTER, package(tool))
    assert raised.value.path == str(bad)
    maker = ImageMaker(store)
    manifest = await maker(CLASSIC, package(tool))
    validate(Digest.of(bytes(manifest)), maker.blobs.read)


async def test_a_link_to_a_path_that_is_no_reference(store: FileStore) -> None:
    other = store.add("other", b"")
    bad = store.add("bad", To(str(other)))
    with pytest.raises(UnmountablePath):
        await ImageMaker(store)(SNAPSHOTTER, package(bad))


@pytest.mark.parametrize("limit", [2, 3, 100])
async def test_layers_of_a_classic_image(store: FileStore, limit: int) -> None:
    leaves = [store.add(f"leaf{number}", {"share": {f"{number}": b"x"}}) for number in range(9)]
    maker = ImageMaker(store, limit)
    manifest = await maker(CLASSIC, *map(package, leaves))
    validate(Digest.of(bytes(manifest)), maker.blobs.read)
    assert len(manifest.layers) == min(limit, len(leaves) + 1)
    assert len(config_of(maker, manifest)["history"]) == len(manifest.layers)
    assert all(not layer.annotations for layer in manifest.layers)


async def test_precedence(store: FileStore) -> None:
    a, b, c = (store.add(name, {"bin": {"tool": name.encode()}}) for name in ("a", "b", "c"))
    maker = ImageMaker(store)
    for packages in ((package(a), package(b), package(c)), (package(c), package(b), package(a))):
        manifest = await maker(SNAPSHOTTER, *packages)
        assert members_of(maker, manifest)["bin/tool"].linkname == f"{a}/bin/tool"
    manifest = await maker(SNAPSHOTTER, package(a), package(b), package(c, priority=4))
    assert members_of(maker, manifest)["bin/tool"].linkname == f"{c}/bin/tool"


@pytest.mark.parametrize(
    ("name", "main_program", "cmd"),
    [("hello", "run", ["run"]), ("hello", None, None), ("shell/hello", "run", ["bash"])],
)
async def test_command(store: FileStore, name: str, main_program: str | None, cmd: list[str] | None) -> None:
    path = store.add("hello", {"bin": {"run": Run()}})
    maker = ImageMaker(store)
    manifest = await maker(CLASSIC, package(path, main_program=main_program), name=name)
    assert config_of(maker, manifest)["config"].get("Cmd") == cmd


async def test_no_command_of_several_packages(store: FileStore) -> None:
    one, two = store.add("one", {}), store.add("two", {})
    maker = ImageMaker(store)
    manifest = await maker(CLASSIC, package(one, main_program="one"), package(two, main_program="two"))
    assert "Cmd" not in config_of(maker, manifest)["config"]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"etc": {"ssl": {"certs": {"ca-bundle.crt": b""}}}}, True),
        ({"etc": {"ssl": To("ssl2"), "ssl2": {"certs": {"ca-bundle.crt": To("../x")}, "x": b""}}}, True),
        ({"etc": {"ssl": {"certs": {"ca-bundle.crt": To("/etc/nowhere")}}}}, False),
        ({"etc": {"ssl": b""}}, False),
        ({}, False),
    ],
)
async def test_certificates(store: FileStore, tree: Any, expected: bool) -> None:
    path, other = store.add("cacert", tree), store.add("other", {"etc": {"ssl": {"openssl.cnf": b""}}})
    maker = ImageMaker(store)
    for packages in ((package(path),), (package(path), package(other))):
        manifest = await maker(CLASSIC, *packages)
        environment = config_of(maker, manifest)["config"]["Env"]
        assert any(variable.startswith("PATH=/bin") for variable in environment)
        assert ("SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt" in environment) is expected


async def test_annotations(store: FileStore) -> None:
    manifest = await ImageMaker(store)(CLASSIC, package(store.add("p", {})), name="hello")
    assert manifest.annotations["org.opencontainers.image.revision"] == PIN.revision
    assert manifest.annotations["org.opencontainers.image.title"] == "hello"
    assert "org.opencontainers.image.source" not in manifest.annotations
