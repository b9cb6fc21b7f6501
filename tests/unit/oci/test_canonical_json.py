import json
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.oci import canonical_json

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=8,
)


@given(values)
def test_json_reads_it_back(value: object) -> None:
    assert json.loads(canonical_json.encode(value)) == value


@given(st.lists(st.tuples(texts, st.integers()), max_size=8, unique_by=lambda pair: pair[0]), st.randoms())
def test_order_of_keys_does_not_matter(pairs: list[tuple[str, int]], random: Random) -> None:
    shuffled = random.sample(pairs, len(pairs))
    assert canonical_json.encode({"inner": dict(pairs)}) == canonical_json.encode({"inner": dict(shuffled)})


def test_form() -> None:
    assert canonical_json.encode({"b": [1, None], "a": "ü\n"}) == '{"a":"ü\\n","b":[1,null]}'.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": -math.inf}, b"bytes", {1, 2}, "\ud800"])
def test_what_is_not_json(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json.encode(value)
