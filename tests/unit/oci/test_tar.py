import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nixery_snap.oci import tar
from nixery_snap.oci.tar import EntryType, TarEntry
from tests.integration.need import need

Member = tuple[TarEntry, Iterable[bytes]]


def packed(members: Iterable[Member]) -> bytes:
    return b"".join(tar.archive(members)) + tar.END


def regular(name: bytes, content: bytes = b"", mode: int = 0o644) -> Member:
    return TarEntry.regular(name, len(content), mode), (content,)


def read_back(archive: bytes) -> list[tuple[TarEntry, bytes]]:
    """By the standard library."""
    members = []
    with tarfile.open(fileobj=io.BytesIO(archive), errorlevel=2) as file:
        for info in file:
            assert (info.uid, info.gid, info.uname, info.gname, info.mtime) == (0, 0, "", "", tar.MTIME)
            content = file.extractfile(info) if info.isreg() else None
            entry = TarEntry(
                os.fsencode(info.name),
                EntryType(info.type),
                info.mode,
                info.size,
                os.fsencode(info.linkname),
            )
            members.append((entry, content.read() if content else b""))
    return members


# Lengths around every edge of the format: 100 bytes of name, 155 of prefix, 256 in all.
_components = st.one_of(
    st.binary(min_size=1, max_size=30),
    st.sampled_from([1, 50, 98, 99, 100, 101, 154, 155, 156, 255]).map(lambda size: b"n" * size),
    st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
).filter(lambda part: part not in {b".", b".."} and not {0, ord("/")} & set(part))
names = st.lists(_components, min_size=1, max_size=5).map(b"/".join)
targets = st.one_of(
    names,
    names.map(lambda name: b"/" + name),
    st.integers(99, 102).map(lambda size: b"t" * size),
    st.just(b"../" * 60 + b"x"),
)
modes = st.sampled_from([0o444, 0o555, 0o644, 0o755, 0o1777])
members = st.lists(
    st.one_of(
        st.builds(TarEntry.directory, names, modes).map(lambda entry: (entry, ())),
        st.builds(TarEntry.symlink, names, targets).map(lambda entry: (entry, ())),
        st.builds(regular, names, st.binary(max_size=1500), modes),
    ),
    max_size=6,
)


@given(members)
@example([regular(b"a" * 99 + b"/" + b"b" * 100)])
@example([regular(b"a" * 155 + b"/" + b"b" * 100)])
@example([regular(b"a" * 156 + b"/" + b"b" * 99)])
@example([(TarEntry.directory(b"a" * 100), ())])
@example([(TarEntry.directory(b"a" * 99), ())])
@example([(TarEntry.directory(b"a" * 155 + b"/" + b"b" * 99), ())])
@example([(TarEntry.directory(b"a" * 155 + b"/" + b"b" * 100), ())])
def test_the_standard_library_reads_it_back(members: list[Member]) -> None:
    found = read_back(packed(members))
    assert found == [(entry, b"".join(content)) for entry, content in members]


@pytest.mark.parametrize("make", [TarEntry.directory, lambda name: TarEntry.regular(name, 0)])
def test_every_length_of_name(make: Callable[[bytes], TarEntry]) -> None:
    for length in range(96, 262):
        for depth in (1, 2, 7):
            parts = [b"p" * (length // depth)] * depth
            entry = make(b"/".join(parts)[:length].rstrip(b"/"))
            assert [found for found, _ in read_back(packed([(entry, ())]))] == [entry]


@given(st.integers(1, 3000))
def test_length_of_a_pax_record_counts_itself(size: int) -> None:
    record = tar._pax_record(b"path", b"x" * size)
    assert int(record.split(b" ", 1)[0]) == len(record)


def test_extended_headers_only_when_needed() -> None:
    assert len(tar.header(TarEntry.regular(b"a" * 100 + b"/" + b"b" * 100, 0))) == 512
    assert len(tar.header(TarEntry.regular(b"a" * 101, 0))) == 3 * 512
    # ustar's own fields are ISO/IEC 646; pax records are UTF-8.
    assert len(tar.header(TarEntry.regular("é".encode(), 0))) == 3 * 512
    assert len(tar.header(TarEntry.symlink(b"a", "é".encode()))) == 3 * 512


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 2**40])
def test_sizes_beyond_eight_gibibytes(size: int) -> None:
    head = tar.header(TarEntry.regular(b"big", size))
    with tarfile.open(fileobj=io.BytesIO(head + tar.END)) as file:
        info = file.next()
    assert info is not None
    assert (info.name, info.size) == ("big", size)


def test_content_must_have_the_size_that_was_said() -> None:
    for content in (b"12", b"1234"):
        with pytest.raises(ValueError, match="its header says 3"):
            packed([(TarEntry.regular(b"file", 3), (content,))])


def test_the_marker_follows_whole_blocks() -> None:
    archive = packed([regular(b"a", b"x" * 513), regular(b"b")])
    assert len(archive) % tar.BLOCK_BYTES == 0
    assert archive.endswith(bytes(1024))


def test_gnu_tar_makes_the_same_files(tmp_path: Path) -> None:
    need("tar")
    content = b"content\n"
    deep = b"/".join([b"directory-with-a-rather-long-name"] * 12)
    members: list[Member] = [
        (TarEntry.directory(b"d", 0o755), ()),
        *(regular(b"d/" + b"n" * length, content) for length in (96, 97, 98, 99, 100, 155, 254, 255)),
        *((TarEntry.directory(deep[:cut]), ()) for cut in range(len(deep)) if deep[cut : cut + 1] == b"/"),
        (TarEntry.directory(deep), ()),
        regular(deep + b"/leaf", content, 0o555),
        regular("ünïcode 漢字".encode(), content),
        regular(b"not utf-8 \xff\xfe", content),
        regular(b"new\nline", content),
        regular(b" spaces ", content),
        regular(b"back\\slash\\n", content),
        regular(b"-rf", content),
        regular(b"100% =x", content),
        (TarEntry.symlink(b"short", b"d"), ()),
        *((TarEntry.symlink(b"link%d" % size, b"t" * size), ()) for size in (99, 100, 101, 255, 1000)),
        (TarEntry.symlink(b"odd", "/nïx/\n".encode() + b"\xff"), ()),
    ]
    archive = tmp_path / "archive.tar"
    archive.write_bytes(packed(members))
    root = tmp_path / "root"
    root.mkdir()
    tool = shutil.which("tar") or "tar"
    done = subprocess.run([tool, "-xpf", archive], cwd=root, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")

    base = os.fsencode(root)
    found = {
        os.path.join(where, name)[len(base) + 1 :]  # noqa: PTH118 - bytes
        for where, directories, files in os.walk(base)
        for name in (*directories, *files)
    }
    assert found == {entry.name for entry, _ in members}
    for entry, chunks in members:
        path = base + b"/" + entry.name
        status = os.lstat(path)
        assert status.st_mtime == tar.MTIME
        match entry.type:
            case EntryType.SYMLINK:
                assert os.readlink(path) == entry.target
            case EntryType.REGULAR:
                assert status.st_mode & 0o7777 == entry.mode
                with open(path, "rb") as file:  # noqa: PTH123 - bytes
                    assert file.read() == b"".join(chunks)
            case EntryType.DIRECTORY:
                assert status.st_mode & 0o7777 == entry.mode
