import json

import pytest
from aiohttp.test_utils import make_mocked_request

from nixery_snap.registry.paging import page

NAMES = [f"name-{number:05}" for number in range(10_000)]


@pytest.mark.parametrize(
    ("query", "found", "looks", "more"),
    [
        ("n=2", ["name-00000", "name-00010"], 21, True),
        ("n=2&last=name-00010", ["name-00020", "name-00030"], 30, True),
        ("n=2&last=name-09979", ["name-09980", "name-09990"], 20, False),
        ("n=0", [], 1, False),
    ],
)
def test_no_more_is_looked_at_than_it_takes(query: str, found: list[str], looks: int, more: bool) -> None:
    looked: list[str] = []

    def may_have(name: str) -> bool:
        looked.append(name)
        return name.endswith("0")

    request = make_mocked_request("GET", f"/names?{query}")
    response = page(request, NAMES, str, lambda names: names, may_have)
    assert json.loads(response.text or "") == found
    assert len(looked) == looks
    assert ("Link" in response.headers) == more
