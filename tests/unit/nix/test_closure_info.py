import hashlib
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.nix import base32, nar
from nixery_snap.nix.closure_info import closure_info, closure_info_entries
from nixery_snap.nix.content_address import recomputes
from nixery_snap.nix.store_path import StorePath
from tests.unit.stores import store_path, store_paths

ONE, TWO, THREE = sorted(store_path(name) for name in ("one", "two", "three"))


def nar_of(content: bytes) -> bytes:
    return b"".join(nar.write(closure_info_entries(content)))


@given(st.sets(store_paths, max_size=30))
def test_it_lists_and_refers_to_the_closure(closure: set[StorePath]) -> None:
    info, content = closure_info(closure)
    assert content.decode().splitlines() == sorted(map(str, closure))
    assert info.references == tuple(sorted(closure))
    assert info.path not in closure
    # Nobody has to sign it.
    assert recomputes(info)
    assert (info.signatures, info.deriver, info.origin) == ((), None, "")
    packed = nar_of(content)
    digest = base32.encode(hashlib.sha256(packed).digest())
    assert (info.nar_hash, info.nar_size) == (f"sha256:{digest}", len(packed))
    assert info.content_address == f"fixed:r:sha256:{digest}"


def test_the_order_does_not_matter() -> None:
    assert len({closure_info(order) for order in permutations((ONE, TWO, THREE))}) == 1


def test_every_closure_has_its_own_path() -> None:
    subsets = [(), (ONE,), (TWO,), (ONE, TWO), (ONE, TWO, THREE)]
    assert len({closure_info(subset)[0].path for subset in subsets}) == len(subsets)


def test_it_is_a_directory_with_one_plain_file() -> None:
    content = closure_info([ONE])[1]
    [root, file] = [
        (entry.name, entry.node, b"".join(entry.content)) for entry in nar.read(iter([nar_of(content)]))
    ]
    assert root[0] == b""
    assert file[0] == b"store-paths"
    assert file[2] == f"{ONE}\n".encode()


@pytest.mark.parametrize(
    ("paths", "hash_part"),
    [
        ((), "xdqsbsfm9lqk7v8x6xkz9vlidj3ci4yc"),  # as nix-store --add of such a directory prints it
        ((StorePath("0" * 32, "a"), StorePath("1" * 32, "b")), "c1as2cmpfdfmq5iwwc9wi4gpp3m038m7"),
    ],
)
def test_paths_never_change(paths: tuple[StorePath, ...], hash_part: str) -> None:
    """Images name them for ever."""
    assert closure_info(paths)[0].path == StorePath(hash_part, "closure-info")
