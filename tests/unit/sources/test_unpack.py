import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.sources.tar_reader import TarReader
from nixery_snap.sources.unpack import UnpackLimits, decompressed, unpack
from tests.unit.sources.archives import COMPRESS, entry, tar

LIMITS = UnpackLimits(bytes=1_000_000, entries=100, depth=10)
DIRECTORY, LINK, HARD_LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def unpacked(stream: io.BytesIO, target: Path, *, strip: bool = False) -> dict[str, str]:
    """What is in `target` afterwards: contents of files, and targets of links behind an arrow."""
    unpack(stream, target, LIMITS, "label", strip=strip)
    found = {}
    for path in sorted(target.rglob("*")):
        name = str(path.relative_to(target))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text() + (
                "*" if os.access(path, os.X_OK) and path.stat().st_mode & 0o111 else ""
            )
        else:
            found[f"{name}/"] = ""
    return found


def test_what_archives_hold(tmp_path: Path) -> None:
    long = "long/" * 8 + "n" * 200
    archive = tar(
        entry("./set", kind=DIRECTORY),
        entry("set/file", b"content"),
        entry("set//./run", b"#!", mode=0o755),
        entry("set/link", kind=LINK, target="sub/other"),
        entry("set/same", kind=HARD_LINK, target="set/file"),
        entry("set/implied/by/name", b""),
        entry(f"set/{long}", b"long"),
    )
    names = [f"{'long/' * depth}" for depth in range(1, 9)]
    assert unpacked(archive, tmp_path / "x", strip=True) == {
        "file": "content",
        "run": "#!*",
        "link": "-> sub/other",
        "same": "content",
        "implied/": "",
        "implied/by/": "",
        "implied/by/name": "",
        long: "long",
        **dict.fromkeys(names, ""),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "others", [[entry("b", b"")], [entry("b/c", b"")], [entry("b", kind=LINK, target="a")]]
)
def test_only_a_single_directory_is_stripped(tmp_path: Path, others: list[bytes]) -> None:
    assert "a/file" in unpacked(tar(entry("a/file", b""), *others), tmp_path / "x", strip=True)
    assert unpacked(tar(entry("file", b"")), tmp_path / "y", strip=True) == {"file": ""}
    assert unpacked(tar(entry("a/file", b"")), tmp_path / "z") == {"a/": "", "a/file": ""}
    assert unpacked(tar(), tmp_path / "empty", strip=True) == {}


HOSTILE: dict[str, bytes] = {
    "absolute": entry("/etc/x", b""),
    "climbs": entry("../x", b""),
    "climbs inside": entry("a/../../x", b""),
    "itself": entry(".", b""),
    "device": entry("x", kind=tarfile.CHRTYPE),
    "block device": entry("x", kind=tarfile.BLKTYPE),
    "pipe": entry("x", kind=tarfile.FIFOTYPE),
    "sparse": entry("x", kind=tarfile.GNUTYPE_SPARSE),
    "hard link outside": entry("x", kind=HARD_LINK, target="/etc/passwd"),
    "hard link up": entry("x", kind=HARD_LINK, target="../x"),
    "hard link to nothing": entry("x", kind=HARD_LINK, target="y"),
    "hard link to a link": entry("l", kind=LINK, target="/etc/passwd")
    + entry("x", kind=HARD_LINK, target="l"),
    "hard link to a directory": entry("d", kind=DIRECTORY) + entry("x", kind=HARD_LINK, target="d"),
    "through a link": entry("l", kind=LINK, target="/tmp") + entry("l/x", b""),
    "over a link": entry("l", kind=LINK, target="/tmp") + entry("l", b""),
    "a link over a file": entry("f", b"") + entry("f", kind=LINK, target="/tmp"),
    "a directory over a link": entry("l", kind=LINK, target="/tmp") + entry("l", kind=DIRECTORY),
    "a link over a directory": entry("d/x", b"") + entry("d", kind=LINK, target="/tmp"),
    "below a file": entry("f", b"") + entry("f/x", b""),
    "twice": entry("f", b"") + entry("f", b""),
    "too deep": entry("a/" * 10 + "x", b""),
    "too long": entry("a" * 256, b""),
    "too long together": entry("/".join(["a" * 200] * 11), b""),
    "a link to something too long": entry("l", kind=LINK, target="a" * 2049),
    "too many": b"".join(entry(f"f{number}", b"") for number in range(101)),
    "too many implied": b"".join(entry(f"{number}/a/b/c/d", b"") for number in range(25)),
    "too large": entry("f", bytes(1_000_001)),
    "damaged": entry("f", b"")[:-1] + b"x" + entry("g", b"")[1:],
    "cut off": entry("f", b"x" * 2000)[:1000],
    "huge header": entry("x", bytes(2_000_000), kind=b"x"),
    "huge name": entry("x", bytes(2_000_000), kind=b"L"),
    "pax length": entry("x", b"999 path=a\n", kind=b"x"),
    "pax length 0": entry("x", b"0 path=a\n", kind=b"x"),
    "pax without length": entry("x", b"path=a\n", kind=b"x"),
    "pax without =": entry("x", b"8 patha\n", kind=b"x"),
    "pax size": entry("x", b"11 size=-1\n", kind=b"x") + entry("f", b""),
    "pax sparse": entry("x", b"22 GNU.sparse.major=1\n", kind=b"x") + entry("f", b""),
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE)
def test_hostile(tmp_path: Path, entries: bytes) -> None:
    (tmp_path / "room").mkdir()
    with pytest.raises(InvalidFormat):
        unpack(io.BytesIO(entries + bytes(1024)), tmp_path / "room/x", LIMITS, "label", strip=False)
    assert [path.name for path in tmp_path.iterdir()] == ["room"]
    assert [path.name for path in (tmp_path / "room").iterdir()] == ["x"]


@pytest.mark.parametrize(
    "target", ["/etc", "..", "../..", "a/../../..", "/nix/store/../x", "sub/../../x", ""]
)
def test_links_that_may_lead_out_are_left_out(tmp_path: Path, target: str) -> None:
    archive = tar(entry("top/file", b""), entry("top/l", kind=LINK, target=target))
    assert unpacked(archive, tmp_path / "x", strip=True) == {"file": ""}


@pytest.mark.parametrize(("compression", "make"), COMPRESS.items())
def test_compressions(tmp_path: Path, compression: str, make: Callable[[bytes], bytes]) -> None:
    content = tar(entry("file", os.urandom(300_000).hex().encode())).getvalue()
    (tmp_path / "a").write_bytes(make(content))
    with (tmp_path / "a").open("rb") as file:
        unpack(decompressed(file), tmp_path / "x", LIMITS, "label", strip=False)
    assert (tmp_path / "x/file").stat().st_size == 600_000
    (tmp_path / "a").write_bytes(make(content)[:-2000])
    with (tmp_path / "a").open("rb") as file, pytest.raises(InvalidFormat):
        unpack(decompressed(file), tmp_path / "y", LIMITS, "label", strip=False)


def test_several_xz_streams(tmp_path: Path) -> None:
    content = tar(entry("file", b"x" * 5000)).getvalue()
    make = COMPRESS["xz"]
    (tmp_path / "a").write_bytes(make(content[:1000]) + bytes(8) + make(content[1000:]))
    with (tmp_path / "a").open("rb") as file:
        unpack(decompressed(file), tmp_path / "x", LIMITS, "label", strip=False)
    assert (tmp_path / "x/file").read_bytes() == b"x" * 5000


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120)
formats = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


@given(
    files=st.dictionaries(
        st.lists(names, min_size=1, max_size=4).map("/".join), st.binary(max_size=2000), max_size=8
    ),
    kind=formats,
)
def test_it_reads_what_the_standard_library_writes(files: dict[str, bytes], kind: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    stream.seek(0)
    reader = TarReader(stream)
    assert [(one.name, b"".join(reader.content())) for one in reader] == list(files.items())


@settings(max_examples=300)
@given(st.binary(max_size=600), st.integers(0, 2000))
def test_garbage_is_refused_or_read(garbage: bytes, start: int) -> None:
    whole = bytearray(
        tar(entry("a/" * 60 + "x" * 100, b"content"), entry("l", kind=LINK, target="a")).getvalue()
    )
    whole[start : start + len(garbage)] = garbage
    reader = TarReader(io.BytesIO(whole))
    try:
        for _ in reader:
            for _ in reader.content():
                pass
    except InvalidFormat:
        pass
