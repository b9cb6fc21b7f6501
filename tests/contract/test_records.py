import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Records

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.booleans() | st.integers() | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=6,
)


@pytest.fixture(params=[0, 100_000], ids=["nothing kept", "kept"])
def records(request: pytest.FixtureRequest, storage_url: str) -> Records:
    return StoredRecords(ObjectStore(storage_url), request.param)


async def test_absent(records: Records) -> None:
    assert await records.get("image", "0" * 64) is None


async def test_kinds_and_keys_are_apart(records: Records) -> None:
    await records.put("image", "00a", 1)
    await records.put("layer", "00a", 2)
    await records.put("image", "00b", 3)
    assert [await records.get("image", "00a"), await records.get("layer", "00a")] == [1, 2]
    assert await records.get("image", "00b") == 3
    assert await records.get("layer", "00b") is None


async def test_many(records: Records) -> None:
    for number in range(100):
        await records.put("image", f"{number:04}", number)
    await records.put("layer", "0100", 100)
    keys = [f"{number:04}" for number in range(200)]
    for _ in range(2):
        assert await records.get_many("image", keys) == {f"{number:04}": number for number in range(100)}
    assert await records.get_many("image", []) == {}


async def test_the_first_stays(records: Records) -> None:
    await records.put("image", "key", "first")
    await records.put("image", "key", "second")
    assert await records.get("image", "key") == "first"


async def test_writers_at_the_same_time_agree(records: Records) -> None:
    await asyncio.gather(*(records.put("image", "key", number) for number in range(3)))
    found = await asyncio.gather(*(records.get("image", "key") for _ in range(3)))
    assert len(set(found)) == 1
    assert found[0] in range(3)


@settings(max_examples=30)
@given(value=values)
async def test_any_json(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    for store in (ObjectStore("memory://"), ObjectStore(f"file://{tmp_path_factory.mktemp('records')}")):
        for memory_bytes in (0, 100_000):
            records = StoredRecords(store, memory_bytes)
            await records.put("image", "key", value)
            assert await records.get("image", "key") == value
