import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.oci.accept import Accept
from nixery_snap.oci.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_LAYER_ZSTD, OCI_MANIFEST

BOTH = (OCI_MANIFEST, DOCKER_MANIFEST)


@pytest.mark.parametrize(
    ("header", "best"),
    [
        ("", OCI_MANIFEST),
        ("*/*", OCI_MANIFEST),
        ("application/*", OCI_MANIFEST),
        (OCI_MANIFEST, OCI_MANIFEST),
        (DOCKER_MANIFEST, DOCKER_MANIFEST),
        (DOCKER_MANIFEST.upper(), DOCKER_MANIFEST),
        (f"{DOCKER_MANIFEST}, {OCI_MANIFEST}", OCI_MANIFEST),
        (f"{DOCKER_MANIFEST}, {OCI_INDEX}", DOCKER_MANIFEST),
        (f"{DOCKER_MANIFEST}, */*", OCI_MANIFEST),
        (f"{DOCKER_MANIFEST}, */*;q=0.5", DOCKER_MANIFEST),
        (f"application/json, {DOCKER_MANIFEST};q=0.9", DOCKER_MANIFEST),
        (f"{OCI_MANIFEST};q=0.4, {DOCKER_MANIFEST};q=0.5", DOCKER_MANIFEST),
        (f"{OCI_MANIFEST} ; q=0.5 ,{DOCKER_MANIFEST}; q=0.4", OCI_MANIFEST),
        (f"{OCI_MANIFEST};q=0, */*;q=0.1", DOCKER_MANIFEST),
        (f"{OCI_MANIFEST};charset=utf-8;q=0.001, {DOCKER_MANIFEST};q=0", OCI_MANIFEST),
        (f"{OCI_MANIFEST};q=2, {DOCKER_MANIFEST};q=0.1", DOCKER_MANIFEST),
        ("application/json", OCI_MANIFEST),
        (",,;q=1,/", OCI_MANIFEST),
    ],
)
def test_best(header: str, best: str) -> None:
    assert Accept.parse(header).best(BOTH) == best


def test_names_and_refuses() -> None:
    accept = Accept.parse(f"{OCI_INDEX};q=0.1, {OCI_LAYER_ZSTD};q=0, */*")
    assert accept.names(OCI_INDEX)
    assert not accept.names(OCI_MANIFEST), "a wildcard names nothing"
    assert accept.refuses(OCI_LAYER_ZSTD)
    assert not accept.refuses(OCI_MANIFEST)
    assert not Accept.parse("").names(OCI_MANIFEST)


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from(["a/b", "*/*", ";q=", "1", "0.5", ",", " ", "\t"])).map("".join)
)
def test_any_text_is_taken(header: str) -> None:
    accept = Accept.parse(header)
    assert all(0 <= quality <= 1 for quality in accept.ranges.values())
    assert accept.best(BOTH) in BOTH


def test_a_long_one_is_cut() -> None:
    assert len(Accept.parse(",".join(f"a/{number}" for number in range(10_000))).ranges) == 64
