import ctypes
import os
import platform
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nixery_snap.errors import PathsMissing
from nixery_snap.imaging.resolver import Resolver
from nixery_snap.nix.file_tree import Directory, Regular, Symlink
from tests.integration.need import absent
from tests.unit.stores import FileStore, Run, To, Tree, info, store_path

ONE, TWO = store_path("one"), store_path("two")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


async def real(store: FileStore, path: str) -> str | None:
    found = await Resolver(store.contents, store.closure).follow(path)
    return None if found is None else found[0]


async def test_a_chain_through_three_store_paths(store: FileStore) -> None:
    program = store.add("program", {"bin": {"tool": Run()}})
    middle = store.add("middle", {"share": To(f"{program}/bin")})
    first = store.add("first", {"bin": To(f"../{middle.base_name}/share"), "tool": To("bin/tool")})
    found = await Resolver(store.contents, store.closure).follow(f"{first}/tool")
    assert found == (f"{program}/bin/tool", Regular(len(Run().content), executable=True))
    assert await real(store, f"{first}/bin") == f"{program}/bin"


async def test_a_store_path_that_is_a_link(store: FileStore) -> None:
    target = store.add("target", {"a": {"b": b"x"}})
    link = store.add("link", To(str(target)))
    relative = store.add("relative", To(f"{target.base_name}/a"))
    assert await real(store, str(link)) == str(target)
    assert await real(store, f"{link}/a/b") == f"{target}/a/b"
    assert await real(store, f"{relative}/b") == f"{target}/a/b"
    resolver = Resolver(store.contents, store.closure)
    assert await resolver.roots([link, target]) == {link: Symlink(str(target)), target: Directory()}


async def test_trees_are_read_once(store: FileStore) -> None:
    target, file = store.add("target", {"a": b"x"}), store.add("file", b"x")
    link = store.add("link", To(f"{target}/a"))
    resolver = Resolver(store.contents, store.closure)
    await resolver.read_trees([target, link, file])
    for path in (target, link, file):
        (store.root / "nix/store" / path.base_name).rename(store.root / path.base_name)
    assert await resolver.follow(f"{link}") == (f"{target}/a", Regular(1))
    assert await resolver.follow(f"{file}") == (str(file), Regular(1))
    assert await resolver.roots([link, target]) == {link: Symlink(f"{target}/a"), target: Directory()}


async def test_directories_come_with_their_entries(store: FileStore) -> None:
    path = store.add("p", {"d": {"f": b"123", "l": To("f")}})
    found = await Resolver(store.contents, store.closure).follow(f"{path}/d")
    assert found == (f"{path}/d", Directory({"f": Regular(3), "l": Symlink("f")}))


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "/",
        "/nix",
        "/nix/store",
        "/nix/store/not-a-store-path",
        f"/nix/store/{store_path('absent').base_name}",
        "../../../../../../etc/passwd",
        "../../..",
        "nowhere",
        "loop",
        "here/loop",
        "file/below",
        f"/nix/store/{store_path('p').base_name}/loop",
        "/proc/self/root/etc",
    ],
)
async def test_what_no_image_has(store: FileStore, target: str) -> None:
    path = store.add("p", {"link": To(target), "loop": To("./loop"), "here": To("."), "file": b""})
    assert await real(store, f"{path}/link") is None


@pytest.mark.parametrize("links", [39, 40, 41])
async def test_as_many_links_as_linux_follows(store: FileStore, links: int) -> None:
    chain = {f"l{number}": To(f"l{number + 1}") for number in range(1, links)}
    path = store.add("p", {**chain, f"l{links}": To("end"), "end": b""})
    assert (await real(store, f"{path}/l1") is not None) is (links <= 40)


async def test_what_is_in_the_store_but_not_in_the_closure(store: FileStore) -> None:
    foreign = store.add("foreign", {"f": b""})
    path = store.add("p", {"link": To(f"{foreign}/f"), "own": To("link")})
    assert await real(store, f"{path}/own") == f"{foreign}/f"
    resolver = Resolver(store.contents, {path: info(path)})
    assert await resolver.follow(f"{path}/own") is None
    assert await resolver.follow(f"{foreign}/f") is None


async def test_a_closure_that_the_store_does_not_have(store: FileStore) -> None:
    absent_path = store_path("absent")
    resolver = Resolver(store.contents, {absent_path: info(absent_path)})
    with pytest.raises(PathsMissing):
        await resolver.roots([absent_path])
    with pytest.raises(PathsMissing):
        await resolver.follow(f"{absent_path}/x")


class _How(ctypes.Structure):
    """openat2(2)"""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10


def kernel(root: Path, path: str) -> str | None:
    """Where the kernel arrives from `path` when `root` is the root directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        how = _How(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
        handle = libc.syscall(_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if handle < 0:
            return None
        try:
            return os.readlink(f"/proc/self/fd/{handle}").removeprefix(str(root)) or "/"
        finally:
            os.close(handle)
    finally:
        os.close(directory)


targets = st.lists(
    st.sampled_from(["a", "b", "c", "..", ".", "", "nix", "store", ONE.base_name, TWO.base_name]),
    min_size=1,
    max_size=5,
).map("/".join)
links = st.one_of(
    targets.filter(bool).map(To),
    targets.map(lambda rest: To(f"/nix/store/{ONE.base_name}/{rest}")),
    targets.map(lambda rest: To(f"../{TWO.base_name}/{rest}")),
)
trees: st.SearchStrategy[Tree] = st.recursive(
    links | st.just(b""),
    lambda children: st.dictionaries(st.sampled_from("abc"), children, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def module_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if platform.system() != "Linux":
        absent("openat2 is Linux's")
    return tmp_path_factory.mktemp("kernel")


@given(trees, trees, st.lists(targets, min_size=1, max_size=5))
@example({"a": b"", "b": To("a/../c"), "c": b""}, {}, ["b", "a/../c", "a/."])
@example({"a": b"", "b": To("a/")}, {}, ["b", "a/"])
async def test_the_kernel_arrives_at_the_same_place(
    module_directory: Path, one: Tree, two: Tree, asked: list[str]
) -> None:
    root = module_directory / os.urandom(8).hex()
    store = FileStore(root)
    store.add(ONE.name, one)
    store.add(TWO.name, two)
    for rest in asked:
        for base in (ONE, TWO):
            path = f"{base}/{rest}"
            there = kernel(root, path)
            inside = there is not None and there.count("/") >= 3
            assert await real(store, path) == (there if inside else None), path
