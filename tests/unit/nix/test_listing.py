import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import listing, nar
from nixery_snap.nix.file_tree import MAX_DEPTH, Directory, Node, Regular, Symlink
from tests.unit.nix.trees import Tree, entries_of, node_of, trees


def offsets_of(tree: Tree) -> dict[bytes, int]:
    offsets: dict[bytes, int] = {}
    for _ in nar.write(entries_of(tree), offsets):
        pass
    return offsets


@given(trees)
def test_parse_undoes_encode(tree: Tree) -> None:
    content = listing.encode(node_of(tree), offsets_of(tree))
    parsed = listing.parse(content)
    assert parsed == node_of(tree)
    if isinstance(parsed, Directory):
        expected = node_of(tree)
        assert isinstance(expected, Directory)
        assert list(parsed.entries) == list(expected.entries)


@given(trees)
def test_offsets_are_written(tree: Tree) -> None:
    offsets = offsets_of(tree)
    found: list[int] = []

    def visit(value: Any) -> None:
        if value["type"] == "regular":
            found.append(value["narOffset"])
        for child in value.get("entries", {}).values():
            visit(child)

    text = listing.encode(node_of(tree), offsets).decode("utf-8", "surrogateescape")
    visit(json.loads(text)["root"])
    assert found == sorted(offsets.values())


@given(trees)
def test_roots(tree: Tree) -> None:
    content = listing.encode(node_of(tree), offsets_of(tree))
    value = json.loads(content.decode("utf-8", "surrogateescape"))
    root = node_of(tree)
    expected = Directory() if isinstance(root, Directory) else root
    for order in (value, {"version": 1, "root": value["root"]}):
        for sort_keys in (False, True):  # Nix 2.4 and later sort them
            text = json.dumps(order, separators=(",", ":"), sort_keys=sort_keys)
            assert listing.root(text.encode()) == expected
            assert listing.root(f" {text} ".encode()) == expected
    assert listing.root(content) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"root":{"entries":{',
        b'{"root":{"entries":{},"type":"directory"},"version":2}',
        b'{"root":{"entries":{},"type":"regular"},"version":1}',
        b'{"root":{"entries":{"a":{"type":"directory"}},"type":"symlink"},"version":1}',
        b'{"version":1,"root":{"type":"directory"}}',
    ],
)
def test_roots_of_what_is_no_listing(content: bytes) -> None:
    with pytest.raises(InvalidFormat):
        listing.root(content)


def test_what_nix_writes() -> None:
    content = (
        b'{"root":{"entries":{"b\xc3\xa9":{"type":"directory","entries":{}},"a\xff":{"size":3,"type":"regular",'
        b'"executable":true,"narOffset":400,"unknown":[]},"l":{"target":"a\\u00e9","type":"symlink"}},'
        b'"type":"directory"},"version":1}'
    )
    tree = listing.parse(content)
    expected: dict[str, Node] = {"a\udcff": Regular(3, True), "bé": Directory(), "l": Symlink("aé")}
    assert tree == Directory(expected)
    assert isinstance(tree, Directory)
    assert list(tree.entries) == list(expected)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "entries", "root", "version", "size", "a", ".."]), inner),
))  # fmt: skip
def test_any_json(value: Any) -> None:
    for content in (value, {"version": 1, "root": value}):
        try:
            listing.parse(json.dumps(content).encode())
        except InvalidFormat as error:
            assert error.kind == "listing"  # noqa: PT017 - it may as well be right


def whole(root: str) -> bytes:
    return b'{"version":1,"root":' + root.encode("utf-8", "surrogateescape") + b"}"


def child(name: str, node: str = '{"type":"regular","size":0}') -> bytes:
    return whole('{"type":"directory","entries":{"' + name + '":' + node + "}}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (whole('{"type":"directory","entries":{}}')[:-1], "not JSON"),
        (whole('{"type":"directory","entries":{}}') + b"{}", "not JSON"),
        (b"[" * 5_000_000, "nested too deep"),
        (whole('{"type":"directory","entries":{"d":' * 100_000), "nested too deep"),
        (b"[" + b"9" * 10_000 + b"]", "not JSON|must be an object"),
        (b"[]", "must be an object"),
        (b'"text"', "must be an object"),
        (b'{"root":{"type":"directory","entries":{}}}', "version must be 1"),
        (b'{"version":2,"root":{"type":"directory","entries":{}}}', "version must be 1"),
        (b'{"version":true,"root":{"type":"directory","entries":{}}}', "version must be 1"),
        (b'{"version":1.0,"root":{"type":"directory","entries":{}}}', "version must be 1"),
        (b'{"version":1}', "must be a JSON object"),
        (whole("[]"), "must be a JSON object"),
        (whole("{}"), "type must be"),
        (whole('{"type":"fifo"}'), "type must be"),
        (whole('{"type":["regular"]}'), "type must be"),
        (whole('{"type":"directory"}'), "entries must be"),
        (whole('{"type":"directory","entries":[]}'), "entries must be"),
        (whole('{"type":"regular"}'), "size must be"),
        (whole('{"type":"regular","size":-1}'), "size must be"),
        (whole('{"type":"regular","size":true}'), "size must be"),
        (whole('{"type":"regular","size":1.5}'), "size must be"),
        (whole('{"type":"regular","size":"1"}'), "size must be"),
        (whole('{"type":"regular","size":9223372036854775808}'), "size must be"),
        (whole('{"type":"regular","size":1,"executable":1}'), "executable must be"),
        (whole('{"type":"symlink"}'), "target must be"),
        (whole('{"type":"symlink","target":""}'), "1 to 4095"),
        (whole('{"type":"symlink","target":"a\\u0000"}'), "NUL"),
        (whole('{"type":"symlink","target":"' + "x" * 4096 + '"}'), "1 to 4095"),
        (whole('{"type":"symlink","target":"\\ud800"}'), "surrogates"),
        (child(""), "must not be empty"),
        (child("."), "must not be empty"),
        (child(".."), "must not be empty"),
        (child("a/b"), "'/'"),
        (child("a\\u0000b"), "NUL"),
        (child("x" * 256), "at most 255"),
        (child("é" * 128), "at most 255"),
        (child("\\ud800"), "surrogates"),
        (child("\\udc2f"), "surrogates"),
        (child("\\udcc3\\udca9"), "surrogates"),
        (child('a":{"type":"regular","size":0},"a'), "twice"),
        (b'{"version":1,"version":1,"root":{"type":"directory","entries":{}}}', "twice"),
        (child("a", '{"type":"regular","size":0,"type":"directory"}'), "twice"),
    ],
)
def test_malformed(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason) as raised:
        listing.parse(content)
    assert raised.value.kind == "listing"
    assert len(repr(raised.value.value)) < 2000
    assert len(str(raised.value)) < 600


def test_larger_than_can_be() -> None:
    with pytest.raises(InvalidFormat, match="larger than"):
        listing.parse(bytes(listing.MAX_SIZE + 1))


def test_depth() -> None:
    tree: Directory = Directory()
    for _ in range(MAX_DEPTH):
        tree = Directory({"d": tree})
    content = listing.encode(tree, {})
    assert content.count(b'"d"') == MAX_DEPTH
    assert listing.encode(listing.parse(content), {}) == content
    with pytest.raises(InvalidFormat, match="nested deeper"):
        listing.encode(Directory({"d": tree}), {})
    root = '{"type":"directory","entries":{"d":' * (MAX_DEPTH + 1) + '{"type":"directory","entries":{}}'
    with pytest.raises(InvalidFormat, match="nested deeper"):
        listing.parse(whole(root + "}}" * (MAX_DEPTH + 1)))


@pytest.mark.parametrize(
    "text",
    [
        '{"version":1,"root":{"type":"directory","entries":{"a":{"type":"regular","size":1}}}}',
        '{"root":{"type":"directory","entries":{"a":{"type":"regular","size":1}}},"version":1}',
        '{"root":{"entries":{"a":{"size":1,"type":"regular"}},"type":"directory"},"version":1}',
    ],
)
def test_a_root_that_breaks_off(text: str) -> None:
    content = text.encode()
    assert listing.root(content) == Directory()
    for size_bytes in range(len(content) - 1):  # of the last brace alone nothing tells but a whole reading
        with pytest.raises(InvalidFormat):
            listing.root(content[:size_bytes])
