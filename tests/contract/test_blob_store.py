import hashlib
import threading
from collections.abc import Callable

import aiohttp
import pytest

from nixery_snap.errors import BlobNotFound, StorageError
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.multipart import PART_BYTES
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import BlobStore, SignedUrl, StoredBytes, StoredFile, StoredStream

CONTENT = bytes(range(256)) * 10_000  # several pieces of a reader
ABSENT = Digest.of(b"absent")


@pytest.fixture
def blobs(storage_url: str) -> BlobStore:
    return Blobs(ObjectStore(storage_url))


def write(blobs: BlobStore, *chunks: bytes) -> Digest:
    with blobs.writer() as writer:
        for chunk in chunks:
            writer.write(chunk)
        assert writer.size_bytes == sum(map(len, chunks))
        return writer.commit()


@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=["empty", "small", "large"])
async def test_what_is_put_is_there(blobs: BlobStore, content: bytes) -> None:
    digest = await blobs.put(content)
    assert str(digest) == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert await blobs.has(digest)
    assert await blobs.get(digest) == content
    assert b"".join(blobs.read(digest)) == content


@pytest.mark.parametrize("chunks", [(), (b"",), (b"x",), (CONTENT[:100], b"", CONTENT[100:])])
async def test_what_is_written_is_there(blobs: BlobStore, chunks: tuple[bytes, ...]) -> None:
    digest = write(blobs, *chunks)
    assert digest == Digest.of(b"".join(chunks))
    assert await blobs.get(digest) == b"".join(chunks)


async def test_writing_twice_is_writing_once(blobs: BlobStore) -> None:
    assert await blobs.put(CONTENT) == await blobs.put(CONTENT) == write(blobs, CONTENT)
    assert await blobs.get(Digest.of(CONTENT)) == CONTENT


async def test_what_is_absent(blobs: BlobStore) -> None:
    assert not await blobs.has(ABSENT)
    for digest in (ABSENT, Digest("sha512", "0" * 128)):
        with pytest.raises(BlobNotFound):
            await blobs.get(digest)
        with pytest.raises(BlobNotFound):
            await blobs.locate(digest)
        with pytest.raises(BlobNotFound):
            next(blobs.read(digest))
        with pytest.raises(BlobNotFound):
            next(blobs.read(digest, 5, 5))


async def test_nothing_is_visible_before_commit(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        writer.write(CONTENT)
        assert not await blobs.has(Digest.of(CONTENT))
    assert not await blobs.has(Digest.of(CONTENT))


async def test_a_failed_writer_leaves_nothing(blobs: BlobStore) -> None:
    def fail() -> None:
        with blobs.writer() as writer:
            writer.write(CONTENT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not await blobs.has(Digest.of(CONTENT))


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, None),
        (5, None),
        (0, 0),
        (0, 1),
        (7, 100),
        (2**20 - 1, 2),
        (len(CONTENT) - 1, 1),
        (len(CONTENT), 0),
    ],
)
async def test_parts(blobs: BlobStore, start: int, length: int | None) -> None:
    digest = await blobs.put(CONTENT)
    end = None if length is None else start + length
    assert b"".join(blobs.read(digest, start, length)) == CONTENT[start:end]


@pytest.mark.parametrize(
    ("start", "length"), [(0, len(CONTENT) + 1), (len(CONTENT) - 1, 2), (len(CONTENT), 1)]
)
async def test_a_part_that_is_not_there(blobs: BlobStore, start: int, length: int) -> None:
    digest = await blobs.put(CONTENT)
    with pytest.raises(StorageError):
        b"".join(blobs.read(digest, start, length))


@pytest.mark.parametrize("content", [b"", CONTENT], ids=["empty", "large"])
@pytest.mark.parametrize("lifetime", [None, 60])
async def test_locate(storage_url: str, content: bytes, lifetime: float | None) -> None:
    blobs = Blobs(ObjectStore(storage_url, url_lifetime_seconds=lifetime))
    location = await blobs.locate(await blobs.put(content))
    assert location.size_bytes == len(content)
    match location:
        case StoredFile(path):
            assert path.read_bytes() == content
        case StoredBytes(found):
            assert found == content
        case StoredStream():
            for start, end in ((0, len(content)), (len(content) // 3, len(content) // 2)):
                pieces = [piece async for piece in location.pieces(start, end - start)]
                assert b"".join(pieces) == content[start:end]
                assert all(len(piece) < 4 * 2**20 for piece in pieces)
            assert lifetime is None
        case SignedUrl(url, head_url):
            async with aiohttp.ClientSession() as session:
                async with session.get(url) as answer:
                    assert (answer.status, await answer.read()) == (200, content)
                async with session.head(head_url) as answer:
                    assert (answer.status, answer.content_length) == (200, len(content))
            assert lifetime == 60


async def test_what_outgrows_the_memory(blobs: BlobStore) -> None:
    """Twice: the second time it is there."""
    content = CONTENT * (2 * PART_BYTES // len(CONTENT) + 1)
    for _ in range(2):
        digest = write(blobs, *(content[start : start + 2**20] for start in range(0, len(content), 2**20)))
        assert digest == Digest.of(content)
        assert await blobs.get(digest) == content


async def test_writers_at_the_same_time(blobs: BlobStore) -> None:
    together = threading.Barrier(6)
    digests: list[Digest] = []

    def work(content: bytes) -> Callable[[], None]:
        def run() -> None:
            with blobs.writer() as writer:
                writer.write(content)
                together.wait()
                digests.append(writer.commit())

        return run

    contents = [b"same", b"same", b"same", b"one", b"two", b""]
    threads = [threading.Thread(target=work(content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(digests) == sorted(map(Digest.of, contents))
    for content in contents:
        assert await blobs.get(Digest.of(content)) == content
