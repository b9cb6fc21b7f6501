import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from nixery_snap.errors import SourceError, TagNotFound
from nixery_snap.ports import Pin
from nixery_snap.sources import path as path_module
from nixery_snap.sources.path import PathSource
from tests.unit.stores import Run, To, Tree, write

TREE: dict[str, Tree] = {
    "default.nix": b"{ }: { }",
    "builder.sh": Run(),
    "sub": {"a.nix": b"a", "deep": {"b.nix": b"b"}},
    "link": To("sub/a.nix"),
    ".git": {"HEAD": b"ref"},
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "packages", TREE)
    return tmp_path / "packages"


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Callable[[Path], PathSource]]:
    """Makes sources that share their checkouts and are closed at the end."""
    made: list[PathSource] = []

    def make(directory: Path) -> PathSource:
        made.append(PathSource(directory, tmp_path / "checkouts"))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture
def source(sources: Callable[[Path], PathSource], directory: Path) -> PathSource:
    return sources(directory)


def swap_link(path: Path, target: str) -> None:
    new = path.with_name("new-link")
    new.symlink_to(target)
    new.replace(path)


def same_size_and_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def become(path: Path, tree: Tree) -> None:
    path.unlink()
    write(path, tree)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


EDITS: dict[str, Callable[[Path], object]] = {
    "content": lambda d: (d / "default.nix").write_bytes(b"{ }: { a = 1; }"),
    "same size and time": lambda d: same_size_and_time(d / "default.nix"),
    "deep content": lambda d: (d / "sub/deep/b.nix").write_bytes(b"B"),
    "append": lambda d: append(d / "default.nix"),
    "truncate": lambda d: os.truncate(d / "default.nix", 0),
    "executable": lambda d: (d / "default.nix").chmod(0o755),
    "not executable": lambda d: (d / "builder.sh").chmod(0o644),
    "rename": lambda d: (d / "default.nix").rename(d / "other.nix"),
    "rename across directories": lambda d: (d / "sub/a.nix").rename(d / "sub/deep/a.nix"),
    "rename of a directory": lambda d: (d / "sub").rename(d / "other"),
    "delete": lambda d: (d / "sub/a.nix").unlink(),
    "delete a directory": lambda d: shutil.rmtree(d / "sub"),
    "replace atomically": lambda d: ((d / "x").write_bytes(b"new"), (d / "x").replace(d / "default.nix")),
    "link's target": lambda d: swap_link(d / "link", "sub/deep/b.nix"),
    "link becomes file": lambda d: become(d / "link", b"a"),
    "file becomes directory": lambda d: become(d / "default.nix", {}),
    "empty file": lambda d: (d / "empty").touch(),
    "empty directory": lambda d: (d / "empty").mkdir(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
async def test_an_edit_is_seen_by_the_next_pin(
    source: PathSource, directory: Path, edit: Callable[[Path], object]
) -> None:
    before = await source.pin("latest")
    assert source.current("latest") == before
    edit(directory)
    assert source.current("latest") is None
    after = await source.pin("latest")
    assert after != before
    assert source.current("latest") == after
    assert ((await source.checkout(before)).directory / "default.nix").read_bytes() == TREE["default.nix"]


async def test_a_file_in_a_new_directory_in_a_new_directory(source: PathSource, directory: Path) -> None:
    pins = [await source.pin("latest")]
    steps: tuple[Callable[[], object], ...] = (
        (directory / "new").mkdir,
        (directory / "new/nested").mkdir,
        lambda: (directory / "new/nested/file").write_bytes(b"1"),
        lambda: (directory / "new/nested/file").write_bytes(b"2"),
    )
    for step in steps:
        step()
        pins.append(await source.pin("latest"))
    assert len(set(pins)) == len(pins)
    assert ((await source.checkout(pins[-1])).directory / "new/nested/file").read_bytes() == b"2"


async def test_editing_back_gives_the_old_revision(source: PathSource, directory: Path) -> None:
    first = await source.pin("latest")
    (directory / "default.nix").write_bytes(b"other")
    assert await source.pin("latest") != first
    (directory / "default.nix").write_bytes(b"{ }: { }")
    assert await source.pin("latest") == first


async def test_the_revision_is_the_content_alone(
    sources: Callable[[Path], PathSource], source: PathSource, directory: Path, tmp_path: Path
) -> None:
    pin = await source.pin("latest")
    copy = tmp_path / "elsewhere"
    shutil.copytree(directory, copy, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert await sources(copy).pin("latest") == pin
    # A checkout is the same content again.
    assert await sources((await source.checkout(pin)).directory).pin("latest") == pin


async def test_a_checkout_holds_all_but_git(source: PathSource) -> None:
    checkout = (await source.checkout(await source.pin("latest"))).directory
    assert (checkout / "sub/deep/b.nix").read_bytes() == b"b"
    assert os.readlink(checkout / "link") == "sub/a.nix"
    assert (checkout / "builder.sh").stat().st_mode & 0o111
    assert not (checkout / ".git").exists()


async def test_git_is_ignored(source: PathSource, directory: Path) -> None:
    pin = await source.pin("latest")
    (directory / ".git/HEAD").write_bytes(b"other")
    (directory / ".git/index").write_bytes(b"new")
    assert await source.pin("latest") == pin


async def test_what_nix_could_not_read_is_ignored(source: PathSource, directory: Path) -> None:
    pin = await source.pin("latest")
    os.mkfifo(directory / "pipe")
    (directory / "sub/outside").symlink_to("../../elsewhere")
    (directory / "etc").symlink_to("/etc")
    assert await source.pin("latest") == pin


async def test_nothing_is_read_again_while_nothing_changes(source: PathSource, directory: Path) -> None:
    pin = await source.pin("latest")
    with INotify(nonblocking=True) as watch:
        for path in (directory, directory / "sub", directory / "sub/deep"):
            watch.add_watch(path, flags.OPEN | flags.ACCESS)
        for _ in range(5):
            assert await source.pin("latest") == pin
        assert watch.read(timeout=0) == []
        assert (directory / "default.nix").read_bytes()
        assert watch.read(timeout=0), "the watch itself works"


async def test_only_what_changed_is_read_again(
    source: PathSource, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_module, "_RACY_NANOSECONDS", 0)  # so that the files need not grow old
    await asyncio.sleep(0.05)
    pin = await source.pin("latest")
    (directory / "touched").touch()
    (directory / "touched").unlink()
    assert source.current("latest") is None
    with INotify(nonblocking=True) as watch:
        watch.add_watch(directory / "default.nix", flags.OPEN)
        assert await source.pin("latest") == pin
        assert watch.read(timeout=0) == []
        (directory / "default.nix").touch()
        assert await source.pin("latest") == pin
        assert watch.read(timeout=0), "what has another time is read"


async def test_checkouts_are_pruned(source: PathSource, directory: Path, tmp_path: Path) -> None:
    pins: list[Pin] = []
    for number in range(10):
        (directory / "default.nix").write_bytes(b"%d" % number)
        pins.append(await source.pin("latest"))
        for checkout in (tmp_path / "checkouts").iterdir():
            os.utime(checkout, times=(0, checkout.stat().st_mtime - 7200))  # not in use any more
        if number == 6:  # going back makes an old one young again
            (directory / "default.nix").write_bytes(b"0")
            assert await source.pin("latest") == pins[0]
    assert len(list((tmp_path / "checkouts").iterdir())) == 8
    for pin in (pins[0], *pins[3:]):
        assert ((await source.checkout(pin)).directory / "default.nix").exists()
    for pin in pins[1:3]:
        with pytest.raises(TagNotFound):
            await source.checkout(pin)


async def test_edits_that_never_stop(sources: Callable[[Path], PathSource], directory: Path) -> None:
    """Whatever is pinned is exactly what its revision says; or it is said that nothing stands still."""
    stop = threading.Event()
    complaints: list[str] = []

    def edit() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (directory / "default.nix").write_bytes(b"%d" % number * 1000)
            (directory / "sub" / f"{number % 3}").write_bytes(b"x" * number)
            (directory / "sub" / f"{(number + 1) % 3}").unlink(missing_ok=True)

    editor = threading.Thread(target=edit)
    editor.start()
    source = sources(directory)
    try:
        for _ in range(20):
            try:
                pin = await source.pin("latest")
            except SourceError as error:
                complaints.append(str(error))
            else:
                assert await sources((await source.checkout(pin)).directory).pin("latest") == pin
    finally:
        stop.set()
        editor.join()
    final = await source.pin("latest")
    assert await sources(directory).pin("latest") == final
    assert all("keeps changing" in complaint for complaint in complaints)


async def test_no_old_pin_while_an_edit_is_being_read(source: PathSource, directory: Path) -> None:
    (directory / "big").write_bytes(bytes(50_000_000))
    before = await source.pin("latest")
    (directory / "default.nix").write_bytes(b"edited")
    reading = asyncio.create_task(source.pin("latest"))
    seen = set()
    while not reading.done():
        seen.add(source.current("latest"))
        await asyncio.sleep(0)
    assert before not in seen
    assert (await reading) != before


async def test_no_old_pin_after_a_failure(source: PathSource, directory: Path, tmp_path: Path) -> None:
    before = await source.pin("latest")
    checkouts = tmp_path / "checkouts"
    checkouts.rename(tmp_path / "aside")
    checkouts.write_bytes(b"in the way")
    (directory / "default.nix").write_bytes(b"edited")
    for _ in range(2):
        with pytest.raises(SourceError, match="cannot be read"):
            await source.pin("latest")
        assert source.current("latest") is None
    checkouts.unlink()
    assert await source.pin("latest") != before


async def test_a_directory_that_goes_and_comes_back(source: PathSource, directory: Path) -> None:
    before = await source.pin("latest")
    shutil.move(directory, directory.with_name("aside"))
    with pytest.raises(SourceError):
        await source.pin("latest")
    write(directory, {"default.nix": b"new"})
    after = await source.pin("latest")
    assert after != before
    (directory / "default.nix").write_bytes(b"newer")
    assert await source.pin("latest") != after


async def test_a_root_that_is_a_link(
    sources: Callable[[Path], PathSource], directory: Path, tmp_path: Path
) -> None:
    write(tmp_path / "release-2", {"default.nix": b"second"})
    current = tmp_path / "current"
    current.symlink_to(directory)
    source = sources(current)
    before = await source.pin("latest")
    swap_link(current, "release-2")
    after = await source.pin("latest")
    assert after != before
    (tmp_path / "release-2/default.nix").write_bytes(b"edited")
    assert await source.pin("latest") not in {before, after}


async def test_a_directory_that_never_was(sources: Callable[[Path], PathSource], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        await sources(tmp_path / "absent").pin("latest")


async def test_revisions_are_tags(
    sources: Callable[[Path], PathSource], source: PathSource, directory: Path
) -> None:
    first = await source.pin("latest")
    (directory / "default.nix").write_bytes(b"edited")
    await source.pin("latest")
    assert await source.pin(first.revision) == first
    assert await sources(directory).pin(first.revision) == first


@pytest.mark.parametrize("tag", ["main", "v1", "", "..", ".", "0" * 63, "LATEST", "0" * 64 + "/.."])
async def test_tags_that_are_none(source: PathSource, tag: str) -> None:
    await source.pin("latest")
    with pytest.raises(TagNotFound):
        await source.pin(tag)
    assert source.current(tag) is None
