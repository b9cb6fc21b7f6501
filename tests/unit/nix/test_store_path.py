import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.store_path import StorePath, store_path_of
from tests.unit.stores import store_paths

HASH = "0c5b8vw40d178xlpddw65q9gf1h2186j"


@given(store_paths)
def test_parse_undoes_str(path: StorePath) -> None:
    assert StorePath.parse(str(path)) == path
    assert StorePath.from_base_name(path.base_name) == path


@given(st.lists(store_paths))
def test_ordered_like_text(paths: list[StorePath]) -> None:
    assert [str(path) for path in sorted(paths)] == sorted(map(str, paths))


@given(st.text())
def test_any_text_parses_to_itself_or_not_at_all(text: str) -> None:
    for candidate in (text, f"/nix/store/{text}", f"/nix/store/{HASH}-{text}"):
        try:
            path = StorePath.parse(candidate)
        except InvalidFormat:
            continue
        assert str(path) == candidate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/nix/store",
        "/nix/store/",
        f"/nix/store/{HASH}",
        f"/nix/store/{HASH}-",
        f"/nix/store/{HASH}-a/",
        f"/nix/store/{HASH}-a/bin",
        f"/nix/store/{HASH}-a\n",
        f"/nix/store//{HASH}-a",
        f"/nix/store/../store/{HASH}-a",
        f"nix/store/{HASH}-a",
        f"/gnu/store/{HASH}-a",
        f"/nix/store/{HASH[:-1]}-a",
        f"/nix/store/{HASH.upper()}-a",
        f"/nix/store/e{HASH[1:]}-a",
        f"/nix/store/{HASH}-.",
        f"/nix/store/{HASH}-..",
        f"/nix/store/{HASH}-.-a",
        f"/nix/store/{HASH}-..-a",
        f"/nix/store/{HASH}-a b",
        f"/nix/store/{HASH}-ä",
        f"/nix/store/{HASH}-{'a' * 212}",
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidFormat):
        StorePath.parse(text)


@pytest.mark.parametrize("name", ["a" * 211, ".hidden", "...", "a=b?c+d_e-f.g", "1"])
def test_unusual_names(name: str) -> None:
    assert StorePath.parse(f"/nix/store/{HASH}-{name}").name == name


@pytest.mark.parametrize(
    ("path", "rest"),
    [(f"/nix/store/{HASH}-a", ""), (f"/nix/store/{HASH}-a/", ""), (f"/nix/store/{HASH}-a/b/c", "b/c")],
)
def test_store_path_of(path: str, rest: str) -> None:
    assert store_path_of(path) == (StorePath(HASH, "a"), rest)


@pytest.mark.parametrize(
    "path", ["/nix/store", "/nix/store/", "/nix/store/x/y", f"/nix/storey/{HASH}-a", "/"]
)
def test_outside_the_store(path: str) -> None:
    assert store_path_of(path) is None
