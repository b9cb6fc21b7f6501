import asyncio
import gzip
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from nixery_snap.errors import PathsMissing, StorageError
from nixery_snap.imaging.layers import Layer, LayerMaker
from nixery_snap.oci.compression import Compression
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.media_types import OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from nixery_snap.oci.tar import TarEntry
from tests.unit.images import ImageMaker
from tests.unit.stores import FileStore, Run, To, Tree, info, store_path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def unpacked(maker: ImageMaker, layer: Layer) -> bytes:
    packed = b"".join(maker.blobs.read(layer.digest))
    assert (Digest.of(packed), len(packed)) == (layer.digest, layer.size_bytes)
    content = gzip.decompress(packed) if layer.compression is Compression.GZIP else zstd.decompress(packed)
    assert str(layer.diff_id) == f"sha256:{hashlib.sha256(content).hexdigest()}"
    return content


async def test_a_layer_holds_its_store_paths(store: FileStore) -> None:
    odd: dict[str, Tree] = {
        "with space": b"1",
        "ünï": b"2",
        os.fsdecode(b"\xff"): b"3",
        "new\nline": b"",
        "l": To("/nix/x\ny"),
    }
    one = store.add(
        "one", {"bin": {"run": Run()}, "deep": {"d" * 90: {"e" * 90: {"f" * 90: odd}}}, "empty": {}}
    )
    two, three = store.add("two", b"file"), store.add("three", To("two"))
    maker = ImageMaker(store)
    layer = await maker.layers.from_store(tuple(store.closure[path] for path in sorted([one, two, three])))
    with tarfile.open(fileobj=io.BytesIO(unpacked(maker, layer))) as archive:
        found = {member.name: member for member in archive}
    assert list(found) == sorted(found, key=lambda name: os.fsencode(name).split(b"/"))
    base = f"nix/store/{one.base_name}"
    deep = f"{base}/deep/{'d' * 90}/{'e' * 90}/{'f' * 90}"
    assert {f"{deep}/{name}" for name in odd} | {"nix", "nix/store", base, f"{base}/empty"} <= found.keys()
    assert found[f"{deep}/l"].linkname == "/nix/x\ny"
    assert [found[name].mode for name in ("nix", base, f"{base}/bin/run")] == [0o755, 0o555, 0o555]
    assert found[f"nix/store/{two.base_name}"].mode == 0o444
    assert found[f"nix/store/{three.base_name}"].issym()


@pytest.mark.parametrize("kind", list(Compression))
async def test_a_path_is_compressed_once_and_copied_later(
    store: FileStore, tmp_path: Path, kind: Compression
) -> None:
    one, two = store.add("one", {"f": b"one" * 1000}), store.add("two", {"f": b"two" * 1000})
    maker = ImageMaker(store)
    alone = await maker.layers.from_store((store.closure[one],), kind)
    # Were it packed again, its file would be missed.
    (tmp_path / "store/nix/store" / one.base_name / "f").unlink()
    both = await maker.layers.from_store((store.closure[one], store.closure[two]), kind)

    fresh_store = FileStore(tmp_path / "fresh")
    fresh_store.add("one", {"f": b"one" * 1000})
    fresh_store.add("two", {"f": b"two" * 1000})
    fresh = ImageMaker(fresh_store)
    closure = fresh_store.closure
    assert await fresh.layers.from_store((closure[one], closure[two]), kind) == both
    assert await fresh.layers.from_store((closure[one],), kind) == alone
    unpacked(maker, both)


async def test_compressions_are_apart(store: FileStore) -> None:
    """Records of one are never taken for the other's; what is inside is the same."""
    path, other = store.add("one", {"f": b"one" * 1000}), store.add("two", b"two")
    maker = ImageMaker(store)
    for paths in ((path,), (path, other)):
        infos = tuple(store.closure[each] for each in paths)
        layers = [await maker.layers.from_store(infos, kind) for kind in (*Compression, *Compression)]
        assert layers[:2] == layers[2:]
        assert len({layer.digest for layer in layers}) == 2
        assert unpacked(maker, layers[0]) == unpacked(maker, layers[1])
        assert [layer.descriptor().media_type for layer in layers[:2]] == [OCI_LAYER_GZIP, OCI_LAYER_ZSTD]


async def test_equal_layers_are_packed_once(store: FileStore) -> None:
    path = store.add("p", {"f": b"x" * 100_000})
    maker = ImageMaker(store)
    layers = await asyncio.gather(*(maker.layers.from_store((store.closure[path],)) for _ in range(20)))
    assert set(layers) == {layers[0]}
    again = LayerMaker(FileStore(store.root / "empty").contents, maker.blobs, maker.records)
    assert await again.from_store((store.closure[path],)) == layers[0]


async def test_other_content_under_the_same_path_is_another_layer(store: FileStore, tmp_path: Path) -> None:
    path = store.add("p", b"one")
    maker = ImageMaker(store)
    first = await maker.layers.from_store((store.closure[path],))
    (tmp_path / "store/nix/store" / path.base_name).write_bytes(b"two")
    second = await maker.layers.from_store((info(path, content="two"),))
    assert first.diff_id != second.diff_id


async def test_a_record_whose_blob_is_gone_is_not_believed(store: FileStore, tmp_path: Path) -> None:
    path, other = store.add("p", {"f": b"content"}), store.add("q", b"")
    maker = ImageMaker(store, url=f"file://{tmp_path}/objects")
    layer = await maker.layers.from_store((store.closure[path],))
    location = next((tmp_path / "objects/blobs").rglob(layer.digest.hex))
    location.unlink()
    assert await maker.layers.from_store((store.closure[path],)) == layer
    assert location.exists()
    location.unlink()
    both = await maker.layers.from_store((store.closure[path], store.closure[other]))
    unpacked(maker, both)


async def test_a_path_that_is_not_there(store: FileStore) -> None:
    maker = ImageMaker(store)
    with pytest.raises(PathsMissing):
        await maker.layers.from_store((info(store_path("absent")),))


async def test_a_file_that_is_no_store_object(store: FileStore, tmp_path: Path) -> None:
    path = store.add("p", {})
    os.mkfifo(tmp_path / "store/nix/store" / path.base_name / "pipe")
    maker = ImageMaker(store, url=f"file://{tmp_path}/objects")
    with pytest.raises(StorageError, match="pipe"):
        await maker.layers.from_store((store.closure[path],))
    assert [file for file in (tmp_path / "objects").rglob("*") if file.is_file()] == []


async def test_entries_at_hand(store: FileStore) -> None:
    maker = ImageMaker(store)
    layer = await maker.layers.from_entries(
        [(TarEntry.directory(b"etc"), ()), (TarEntry.regular(b"etc/x", 3), (b"1", b"23"))]
    )
    with tarfile.open(fileobj=io.BytesIO(unpacked(maker, layer))) as archive:
        assert archive.getnames() == ["etc", "etc/x"]
    with pytest.raises(StorageError, match="could not be packed"):
        await maker.layers.from_entries([(TarEntry.regular(b"x", 4), (b"123",))])
