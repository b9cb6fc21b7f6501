from pathlib import Path

import pytest

from nixery_snap.object_store import keys
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore

KEY = "0123abcd"


@pytest.fixture
def records(tmp_path: Path) -> StoredRecords:
    return StoredRecords(ObjectStore(f"file://{tmp_path}"), 10_000)


@pytest.mark.parametrize("damaged", [b"", b"{", b"\0" * 100, b"\xff\xfe\x00", b'{"a": 1} junk'])
async def test_a_damaged_record_is_forgotten(records: StoredRecords, tmp_path: Path, damaged: bytes) -> None:
    file = tmp_path / keys.record("image", KEY)
    file.parent.mkdir(parents=True)
    file.write_bytes(damaged)
    assert await records.get("image", KEY) is None
    assert not file.exists()
    await records.put("image", KEY, {"new": 1})
    assert await records.get("image", KEY) == {"new": 1}
    assert file.read_bytes() == b'{"new":1}'


async def test_a_record_is_read_from_disk_once(records: StoredRecords, tmp_path: Path) -> None:
    await StoredRecords(ObjectStore(f"file://{tmp_path}"), 0).put("image", KEY, [1])
    assert await records.get("image", KEY) == [1]
    (tmp_path / keys.record("image", KEY)).unlink()
    assert await records.get("image", KEY) == [1]
    assert await StoredRecords(ObjectStore(f"file://{tmp_path}"), 10_000).get("image", KEY) is None


async def test_what_was_refused_is_not_remembered(records: StoredRecords, tmp_path: Path) -> None:
    await StoredRecords(ObjectStore(f"file://{tmp_path}"), 0).put("image", KEY, "of another replica")
    await records.put("image", KEY, "of this one")
    assert await records.get("image", KEY) == "of another replica"


async def test_memory_is_bounded(tmp_path: Path) -> None:
    records = StoredRecords(ObjectStore(f"file://{tmp_path}"), 10_000)
    for number in range(100):
        await records.put("image", f"{number:04}", "x" * 500)
    await records.put("image", "large", "x" * 50_000)
    assert records._memory.currsize <= 10_000
    for key, length in (("0000", 500), ("0099", 500), ("large", 50_000)):
        assert await records.get("image", key) == "x" * length
