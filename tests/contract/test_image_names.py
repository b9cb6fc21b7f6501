from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixery_snap.object_store.image_names import StoredImageNames
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci.reference import check_name
from nixery_snap.ports import ImageNames

NAMES = st.from_regex(r"[a-z0-9]{1,3}([._-][a-z0-9]{1,3}|/[a-z0-9]{1,3}){0,6}", fullmatch=True)


@pytest.fixture(params=["file", "memory"])
def names(request: pytest.FixtureRequest, tmp_path: Path) -> ImageNames:
    return StoredImageNames(ObjectStore("memory://" if request.param == "memory" else f"file://{tmp_path}"))


async def test_none(names: ImageNames) -> None:
    assert await names.all() == []


async def test_a_name_may_be_the_beginning_of_another(names: ImageNames) -> None:
    every = [
        "a",
        "a-b",
        "a.b",
        "a/b",
        "a/b/c",
        "a0",
        "b" * 255,
        *("/".join(["c"] * n) for n in (99, 100, 101, 128)),
    ]
    every += ["d" * 200, "d" * 201, "d" * 199 + "/e/f"]
    for name in reversed(every):
        await names.put(name, "0" * 64)
    await names.put("a", "1" * 64)
    assert await names.all() == sorted(every)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, max_size=5))
async def test_any_names(names: ImageNames, some: list[str]) -> None:
    for name in some:
        await names.put(check_name(name), "0" * 64)
    found = await names.all()
    assert set(some) <= set(found)
    assert list(found) == sorted(set(found))
