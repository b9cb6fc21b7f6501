import json
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.attribute_path import MAX_LENGTH, AttributePath
from tests.integration.need import need

part_texts = st.one_of(
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_'+-]*", fullmatch=True),
    st.text(st.characters(min_codepoint=32, exclude_characters='"\\'), min_size=1),
)
attribute_paths = (
    st.lists(part_texts, min_size=1, max_size=6)
    .map(lambda parts: AttributePath(tuple(parts)))
    .filter(lambda path: len(str(path)) <= MAX_LENGTH)
)


@given(attribute_paths)
def test_parse_undoes_str(path: AttributePath) -> None:
    assert AttributePath.parse(str(path)) == path


@given(st.text(st.sampled_from("ab0_-'+.\"\\$ {}\n\x7fé")))
def test_what_parses_has_one_notation(text: str) -> None:
    try:
        path = AttributePath.parse(text)
    except InvalidFormat:
        return
    assert AttributePath.parse(str(path)) == path
    assert all(path.parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hello", ("hello",)),
        ("python3Packages.requests", ("python3Packages", "requests")),
        ('nodePackages."@scope/tool"', ("nodePackages", "@scope/tool")),
        ('"a.b".c', ("a.b", "c")),
        ('"hello"', ("hello",)),
        ("7zz", ("7zz",)),
        ('"${x}"', ("${x}",)),
    ],
)
def test_parse(text: str, parts: tuple[str, ...]) -> None:
    assert AttributePath.parse(text).parts == parts


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 1),
        (".", 1),
        ("a.", 3),
        ("a..b", 3),
        ('a."', 3),
        ('""', 1),
        ('"a"b', 4),
        ('a."b\n"', 3),
        ("a b", 2),
    ],
)
def test_malformed_says_where(text: str, place: int) -> None:
    with pytest.raises(InvalidFormat, match=rf"expected at character {place}$"):
        AttributePath.parse(text)


def test_length() -> None:
    AttributePath.parse("a" * MAX_LENGTH)
    with pytest.raises(InvalidFormat, match="longer"):
        AttributePath.parse("a" * (MAX_LENGTH + 1))


def test_nix_reads_the_notation_alike() -> None:
    need("nix-instantiate")
    paths = [("a",), ("a b", "c"), ("a.b", "c"), ("a'", "_b"), ("@scope/tool",), ("über", "a-b")]
    sets = " ".join(f"{{ {AttributePath(path)} = null; }}" for path in paths)
    names = (
        "let names = value: if value == null then [ ] else"
        " let name = builtins.head (builtins.attrNames value); in [ name ] ++ names value.${name};"
        f" in map names [ {sets} ]"
    )
    shown = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", "-E", names],
        check=True,
        capture_output=True,
        env={**os.environ, "NIX_REMOTE": "dummy://"},
    ).stdout
    assert json.loads(shown) == [list(path) for path in paths]
