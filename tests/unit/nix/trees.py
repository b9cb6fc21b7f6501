"""File trees by hand and by hypothesis: what NARs and listings are made from."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hypothesis import strategies as st

from nixery_snap.nix.file_tree import Directory, FileEntry, Node, Regular, Symlink


@dataclass(frozen=True)
class File:
    content: bytes = b""
    executable: bool = False


@dataclass(frozen=True)
class Link:
    target: bytes


Tree = File | Link | Mapping[bytes, "Tree"]


def node_of(tree: Tree) -> Node:
    match tree:
        case File(content, executable):
            return Regular(len(content), executable)
        case Link(target):
            return Symlink(os.fsdecode(target))
        case _:
            return Directory({os.fsdecode(name): node_of(tree[name]) for name in sorted(tree)})


def entries_of(tree: Tree, name: bytes = b"", piece: int = 1 << 20) -> Iterator[FileEntry]:
    """As a reader yields them; contents come in pieces of that size."""
    match tree:
        case File(content, executable):
            pieces = (content[start : start + piece] for start in range(0, len(content), piece))
            yield FileEntry(name, Regular(len(content), executable), pieces)
        case Link(target):
            yield FileEntry(name, Symlink(os.fsdecode(target)), iter(()))
        case _:
            yield FileEntry(name, Directory(), iter(()))
            for child in sorted(tree):
                yield from entries_of(tree[child], name + b"/" + child if name else child, piece)


names = (
    st.one_of(
        st.text("ab.-_", min_size=1, max_size=4).map(str.encode),
        st.text(min_size=1, max_size=8).map(lambda text: text.encode("utf-8", "replace")),
        st.binary(min_size=1, max_size=20),
        st.sampled_from([b"x" * 255, b"12345678", b"type", b")", b"entry"]),
    )
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda name: name not in {b".", b".."})
)
targets = st.binary(min_size=1, max_size=40).filter(lambda target: b"\0" not in target)
files = st.builds(
    File,
    st.one_of(st.binary(max_size=40), st.integers(60_000, 140_000).map(lambda n: b"7" * n)),
    st.booleans(),
)
trees: st.SearchStrategy[Tree] = st.recursive(
    st.one_of(files, st.builds(Link, targets)),
    lambda below: st.dictionaries(names, below, max_size=4),
    max_leaves=12,
)
