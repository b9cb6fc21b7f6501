import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat, InvalidName
from nixery_snap.oci.reference import MAX_NAME_LENGTH, check_name, check_tag

components = st.builds(
    lambda parts, separator: separator.join(parts),
    st.lists(st.text("az09", min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from([".", "_", "__", "-", "---"]),
)


@given(st.lists(components, min_size=1, max_size=6).map("/".join))
def test_names(name: str) -> None:
    if len(name) <= MAX_NAME_LENGTH:
        assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *[
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a.",
            ".a",
            "a..b",
            "a___b",
            "a_-b",
            "-a",
            "a-",
            "a b",
            "a\n",
            "ü",
        ],
        *[
            "../a",
            "a/../b",
            "a/./b",
            "a:b",
            "a@b",
            "\u0663",
            'a"b',
            "${a}",
            "a" * (MAX_NAME_LENGTH + 1),
            "a" * 10_000,
        ],
    ],
)
def test_no_names(name: str) -> None:
    with pytest.raises(InvalidName) as raised:
        check_name(name)
    assert len(str(raised.value)) < 500


def test_catastrophic_backtracking_is_not_to_be_had() -> None:
    with pytest.raises(InvalidName):
        check_name("a-" * 127)


@given(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True))
def test_tags(tag: str) -> None:
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "a:b", "ü", "a" * 129])
def test_no_tags(tag: str) -> None:
    with pytest.raises(InvalidFormat):
        check_tag(tag)
