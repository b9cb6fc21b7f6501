import pytest
from hypothesis import given

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.file_tree import Directory, Node, Regular, Symlink, tree_of
from tests.unit.nix.trees import Tree, entries_of, node_of, trees


@given(trees)
def test_a_tree_from_its_entries(tree: Tree) -> None:
    assert tree_of((entry.name, entry.node) for entry in entries_of(tree)) == node_of(tree)


def test_entries_keep_their_order_and_odd_names() -> None:
    entries: list[tuple[bytes, Node]]
    entries = [(b"", Directory()), (b"\xff", Directory()), (b"\xff/b", Regular(1)), (b"\xff/a", Symlink("b"))]
    tree = tree_of(entries)
    assert isinstance(tree, Directory)
    inner = tree.entries["\udcff"]
    assert isinstance(inner, Directory)
    assert list(inner.entries) == ["b", "a"]
    assert entries[0][1] == Directory()  # what was given is left as it was


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], "no root"),
        ([(b"a", Regular(1))], "does not come before"),
        ([(b"a", Directory()), (b"a/b", Regular(1))], "does not come before"),
        ([(b"", Regular(1)), (b"a", Regular(1))], "does not come before"),
        ([(b"", Directory()), (b"a/b", Regular(1))], "does not come before"),
        ([(b"", Directory()), (b"a", Regular(1)), (b"a/b", Regular(1))], "does not come before"),
        ([(b"", Directory()), (b"a", Regular(1)), (b"a", Symlink("b"))], "twice"),
        ([(b"", Directory()), (b"a", Directory()), (b"a", Directory())], "twice"),
        ([(b"", Directory()), (b"", Directory())], "must not be empty"),
        ([(b"", Directory()), (b"..", Regular(1))], "must not be empty"),
        ([(b"", Directory()), (b"a\0", Regular(1))], "NUL"),
    ],
)
def test_entries_of_no_tree(entries: list[tuple[bytes, Node]], reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason):
        tree_of(entries)
