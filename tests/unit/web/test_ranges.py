import re

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given
from hypothesis import strategies as st

from nixery_snap.web.ranges import UNSATISFIABLE, asked_range


def expected(header: str, size: int) -> tuple[int, int] | None:
    """RFC 9110, section 14.1.2, for one range of the unit bytes."""
    match = re.fullmatch(r"([0-9]*)-([0-9]*)", header)
    if match is None or header == "-":
        return UNSATISFIABLE
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    elif last and int(last) < int(first):
        return UNSATISFIABLE
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
    return (start, end) if start < end else UNSATISFIABLE


numbers = st.one_of(st.just(""), st.integers(0, 20).map(str), st.integers(0, 2**80).map(str), st.just("007"))
headers = st.one_of(
    st.builds("{}-{}".format, numbers, numbers),
    st.text("0123456789-x ", max_size=8).map(str.strip),
    st.text(st.characters(categories=["Nd"]), max_size=3).map("{0}-{0}".format),
)


@given(headers, st.integers(0, 30))
@example("\u0663-\u0665", 30)
@example(f"0-{2**64}", 30)
@example(f"-{2**64}", 30)
def test_range_parser(header: str, size: int) -> None:
    request: web.Request = make_mocked_request("GET", "/", headers={"Range": f"bytes={header}"})
    assert asked_range(request, '"x"', size) == expected(header, size)
