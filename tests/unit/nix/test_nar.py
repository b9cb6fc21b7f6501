import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import nar
from nixery_snap.nix.file_tree import MAX_DEPTH, Directory, FileEntry, Node, Regular, Symlink, tree_of
from tests.unit.nix.trees import File, Link, Tree, entries_of, node_of, trees


def token(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(-len(text) % 8)


def archive(*parts: bytes) -> bytes:
    """Tokens, but for parts that are longer than any: those go in as they are."""
    return b"".join([token(b"nix-archive-1"), *(part if len(part) > 20 else token(part) for part in parts)])


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def packed(tree: Tree) -> bytes:
    return b"".join(nar.write(entries_of(tree)))


def unpacked(chunks: Iterator[bytes]) -> list[tuple[bytes, Node, bytes]]:
    return [(entry.name, entry.node, b"".join(entry.content)) for entry in nar.read(chunks)]


def all_of(tree: Tree) -> list[tuple[bytes, Node, bytes]]:
    return [(entry.name, entry.node, b"".join(entry.content)) for entry in entries_of(tree)]


def refused(content: bytes, reason: str, name: bytes = b"") -> None:
    """Whatever the size of the chunks."""
    for size in (len(content) + 1, 1, 11):
        with pytest.raises(InvalidFormat, match=reason) as raised:
            unpacked(pieces(content, size))
        assert raised.value.kind == "NAR"
        assert raised.value.value == name
        assert len(str(raised.value)) < 600


def nested(depth: int) -> Tree:
    tree: Tree = File()
    for _ in range(depth):
        tree = {b"d": tree}
    return tree


FILE = archive(b"(", b"type", b"regular", b"contents", b"hello", b")")
TREE: Tree = {b"a": File(b"12345"), b"b": {b"run": File(b"x" * 70_000, executable=True)}, b"c": Link(b"a")}


# --- what is right ----------------------------------------------------------------------------------


@given(trees, st.integers(1, 300_000), st.integers(1, 300_000))
def test_read_undoes_write(tree: Tree, written_size: int, read_size: int) -> None:
    content = b"".join(nar.write(entries_of(tree, piece=written_size)))
    assert content == packed(tree)
    assert unpacked(pieces(content, max(read_size, len(content) // 5000))) == all_of(tree)


@given(trees)
def test_contents_that_are_not_read_are_skipped(tree: Tree) -> None:
    content = packed(tree)
    found = [(entry.name, entry.node) for entry in nar.read(pieces(content, 1000))]
    assert found == [(name, node) for name, node, _ in all_of(tree)]
    assert tree_of(found) == node_of(tree)


def test_contents_that_are_read_in_part_are_skipped() -> None:
    content = packed({b"a": File(b"1" * 1_000_001), b"b": File(b"2" * 1_000_001)})
    firsts = [next(entry.content, None) for entry in nar.read(pieces(content, 50_000))]
    assert [first and first[:1] for first in firsts] == [None, b"1", b"2"]


def test_a_large_content_after_its_turn() -> None:
    content = packed({b"a": File(b"1" * 1_000_000), b"b": File(b"2" * 1_000_000)})
    _, first, second = nar.read(pieces(content, 50_000))
    for entry in (first, second):
        with pytest.raises(RuntimeError, match="before the next entry"):
            next(entry.content)


@given(trees)
def test_offsets_are_where_the_contents_are(tree: Tree) -> None:
    offsets: dict[bytes, int] = {}
    content = b"".join(nar.write(entries_of(tree), offsets))
    expected = {name: held for name, node, held in all_of(tree) if isinstance(node, Regular)}
    assert offsets.keys() == expected.keys()
    assert all(content[offsets[name] :].startswith(held) for name, held in expected.items())
    assert all(
        content[offsets[name] - 8 : offsets[name]] == struct.pack("<Q", len(held))
        for name, held in expected.items()
    )


@pytest.mark.parametrize(
    ("tree", "root"),
    [
        ({b"a": File(b"1" * 10_000)}, Directory()),
        (File(b"1" * 10_000, executable=True), Regular(10_000, True)),
        (File(b"1" * 10_000), Regular(10_000)),
        (Link(b"/nix/\xff"), Symlink("/nix/\udcff")),
    ],
)
def test_root_takes_no_more_than_it_needs(tree: Tree, root: Node) -> None:
    chunks = pieces(packed(tree), 1)
    assert nar.root(chunks) == root
    _, *parents = all_of(tree)
    taken = len(packed(tree)) - sum(1 for _ in chunks)
    assert taken <= 24 + 3 * 16 + 24 + 24 + 16
    assert isinstance(root, Directory) == bool(parents)


def test_bounded_memory_both_ways() -> None:
    size = 64 << 20

    def entries() -> Iterator[FileEntry]:
        yield FileEntry(b"", Directory(), iter(()))
        yield FileEntry(b"large", Regular(size), (bytes(100_000) for _ in range(size // 100_000)))

    def exact() -> Iterator[FileEntry]:
        for entry in entries():
            last = size % 100_000
            content = (chunk for source in (entry.content, iter([bytes(last)])) for chunk in source)
            yield FileEntry(entry.name, entry.node, content if entry.name else iter(()))

    tracemalloc.start()
    try:
        longest = read = 0
        for entry in nar.read(nar.write(exact())):
            for chunk in entry.content:
                read += len(chunk)
                longest = max(longest, len(chunk))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == size
    assert longest <= nar.CHUNK
    assert peak < 4 << 20


def test_one_enormous_chunk_comes_out_in_small_ones() -> None:
    content = packed(File(b"1" * 3_000_000))
    lengths = [len(chunk) for entry in nar.read(iter([content])) for chunk in entry.content]
    assert sum(lengths) == 3_000_000
    assert max(lengths) <= nar.CHUNK
    entry = FileEntry(b"", Regular(3_000_000), iter([b"1" * 3_000_000]))
    assert max(len(chunk) for chunk in nar.write([entry])) <= nar.CHUNK


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
def test_as_deep_as_can_be(depth: int) -> None:
    tree = nested(depth)
    assert unpacked(pieces(packed(tree), 1000))[-1][0] == b"/".join([b"d"] * depth)


# --- what is not ------------------------------------------------------------------------------------


@given(trees.filter(lambda tree: len(packed(tree)) < 2000))
def test_every_truncation(tree: Tree) -> None:
    content = packed(tree)
    for length in range(0, len(content), 3):
        with pytest.raises(InvalidFormat, match="truncated"):
            unpacked(pieces(content[:length], 64))


@given(trees.filter(lambda tree: len(packed(tree)) < 3000), st.data())
def test_a_damaged_byte_gives_another_archive_or_an_error(tree: Tree, data: st.DataObject) -> None:
    content = packed(tree)
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        found = unpacked(pieces(bytes(changed), 100))
    except InvalidFormat:
        return
    assert found != all_of(tree)


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic(junk: bytes) -> None:
    with pytest.raises(InvalidFormat):
        unpacked(iter([archive(), junk]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (token(b"nix-archive-2") + FILE[24:], "'nix-archive-1' is expected here, not 'nix-archive-2'"),
        (b"<!DOCTYPE html><html>" * 9, "'nix-archive-1' is expected here, not a token of [0-9]+ bytes"),
        (FILE[:21] + b"\1" + FILE[22:], "padding of 'nix-archive-1'"),
        (FILE + b"\0", "bytes after its end"),
        (FILE + FILE, "bytes after its end"),
        (archive(b"{", b"type"), r"'\(' is expected here, not '\{'"),
        (archive(b"(", b"kind", b"regular"), "'type' is expected here, not 'kind'"),
        (archive(b"(", b"type", b"fifo", b")"), "regular, symlink or directory is expected here, not 'fifo'"),
        (archive(b"(", b"type", b"regular", b"content", b"x"), "'contents' is expected here, not 'content'"),
        (archive(b"(", b"type", b"regular", b")"), "'contents' is expected"),
        (archive(b"(", b"type", b"regular", b"executable", b"yes", b"contents"), "'' is expected"),
        (archive(b"(", b"type", b"symlink", b"to", b"x", b")"), "'target' is expected here, not 'to'"),
        (archive(b"(", b"type", b"directory", b"node"), r"entry or \) is expected here, not 'node'"),
        (FILE[:-16] + token(b"entry"), r"'\)' is expected here, not 'entry'"),
        (archive(b"(", b"type", b"symlink", b"target", b"", b")"), "1 to 4095"),
        (archive(b"(", b"type", b"symlink", b"target", b"a\0b", b")"), "NUL"),
        (archive(b"(", b"type", b"symlink", b"target", token(b"x" * 4096), b")"), "at most 4095.* 4096"),
        (archive(b"(", b"type", b"symlink", b"target", struct.pack("<Q", 1 << 63) + bytes(20)), "at most"),
    ],
)
def test_malformed(content: bytes, reason: str) -> None:
    refused(content, reason)


def entry(name: bytes, *rest: bytes) -> bytes:
    """One directory entry, a file unless `rest` says otherwise."""
    node = rest or (b"(", b"type", b"regular", b"contents", b"", b")")
    tokens = [b"entry", b"(", b"name", name, b"node", *node, b")"]
    return b"".join(map(token, tokens))


def directory(*entries: bytes) -> bytes:
    return archive(b"(", b"type", b"directory", *entries, b")")


@pytest.mark.parametrize(
    ("entries", "name", "reason"),
    [
        ([entry(b"b"), entry(b"a")], b"a", "must not come after b'b'"),
        ([entry(b"a"), entry(b"B")], b"B", "must not come after b'a'"),
        ([entry(b"a"), entry(b"a")], b"a", "there twice"),
        ([entry(b".")], b".", "must not be empty"),
        ([entry(b"..")], b"..", "must not be empty"),
        ([entry(b"")], b"", "must not be empty"),
        ([entry(b"a/b")], b"a/b", "must not hold '/'"),
        ([entry(b"../etc/passwd")], b"../etc/passwd", "must not hold '/'"),
        ([entry(b"a\0b")], b"a\0b", "NUL"),
        ([entry(b"x" * 256)], b"", "a name has at most 255 bytes, here are 256"),
        (
            [entry(b"a").replace(token(b"name"), struct.pack("<Q", 1 << 60) + b"name" + bytes(4))],
            b"",
            "token of",
        ),
        ([entry(b"a", b"(", b"type", b"socket", b")")], b"a", "regular, symlink or directory"),
        ([entry(b"abc").replace(b"abc\0\0\0\0\0", b"abc\0\0\0\0\1")], b"", "padding of a name"),
        (
            [entry(b"a")[:-16] + token(b"junk-junk-junk")],
            b"a",
            r"'\)' is expected here, not 'junk-junk-junk'",
        ),
    ],
)
def test_malformed_entries(entries: list[bytes], name: bytes, reason: str) -> None:
    refused(directory(*entries), reason, name)


def test_the_padding_of_contents() -> None:
    assert FILE.endswith(b"hello\0\0\0" + token(b")"))
    refused(FILE[:-17] + b"\1" + FILE[-16:], "padding of a content")
    large = packed(File(b"1" * 100_001))
    assert large.endswith(b"1" + bytes(7) + token(b")"))
    wrong = large[:-20] + b"\1" + large[-19:]
    refused(wrong, "padding of a content")
    skipping = nar.read(iter([wrong]))
    next(skipping)
    with pytest.raises(InvalidFormat, match="padding of a content"):
        next(skipping)


def test_a_file_that_claims_to_be_huge() -> None:
    head = FILE[: FILE.index(token(b"hello"))]
    refused(head + struct.pack("<Q", 1 << 63), "no file has 9223372036854775808 bytes")
    huge = head + struct.pack("<Q", (1 << 63) - 1) + b"some"
    assert nar.root(iter([huge])) == Regular((1 << 63) - 1)
    refused(huge, "truncated")


def test_deeper_than_can_be() -> None:
    with pytest.raises(InvalidFormat, match="nested deeper than 256"):
        packed(nested(MAX_DEPTH + 2))
    opening = b"".join(map(token, [b"entry", b"(", b"name", b"d", b"node", b"(", b"type", b"directory"]))
    endless = archive(b"(", b"type", b"directory", opening * 100_000)
    with pytest.raises(InvalidFormat, match="nested deeper than 256") as raised:
        unpacked(pieces(endless, 1 << 16))
    assert len(str(raised.value)) < 600


def made(*entries: tuple[bytes, Node, bytes]) -> bytes:
    return b"".join(nar.write(FileEntry(name, node, iter([content])) for name, node, content in entries))


DIRECTORY = (b"", Directory(), b"")


def file(name: bytes, size: int = 0, content: bytes = b"") -> tuple[bytes, Node, bytes]:
    return name, Regular(size), content


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], "no entry"),
        ([file(b"a")], "must be the root"),
        ([DIRECTORY, DIRECTORY], "must not be empty"),
        ([file(b""), file(b"a")], "directory does not come right before"),
        ([DIRECTORY, file(b"d/a")], "directory does not come right before"),
        (
            [DIRECTORY, (b"d", Directory(), b""), file(b"e"), file(b"d/a")],
            "directory does not come right before",
        ),
        ([DIRECTORY, file(b"b"), file(b"a")], "sorted"),
        ([DIRECTORY, file(b"a"), file(b"a")], "sorted"),
        ([DIRECTORY, file(b"..")], "must not be empty"),
        ([DIRECTORY, file(b"a\0")], "NUL"),
        ([DIRECTORY, file(b"x" * 256)], "at most 255"),
        ([DIRECTORY, file(b"/a")], "directory does not come right before"),
        ([DIRECTORY, (b"a", Symlink(""), b"")], "1 to 4095"),
        ([DIRECTORY, file(b"a", 3, b"12")], "should have 3 bytes and has 2"),
        ([DIRECTORY, file(b"a", 3, b"1234")], "should have 3 bytes and has more"),
        ([DIRECTORY, file(b"a", -1, b"")], "no file has -1 bytes"),
    ],
)
def test_entries_that_make_no_archive(entries: list[tuple[bytes, Node, bytes]], reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason):
        made(*entries)


@pytest.mark.parametrize("size", [1, 13, 1000])
def test_errors_say_where(size: int) -> None:
    content = directory(entry(b"a"), entry(b"b", b"(", b"type", b"socket", b")"))
    place = content.index(token(b"socket"))
    with pytest.raises(InvalidFormat, match=rf"\(near byte {place}\)"):
        unpacked(pieces(content, size))
