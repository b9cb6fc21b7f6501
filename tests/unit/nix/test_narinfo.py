import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import base32
from nixery_snap.nix.narinfo import MAX_SIZE, NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from tests.unit.stores import store_paths

DIGEST = bytes(range(32))
HASH = f"sha256:{base32.encode(DIGEST)}"
OTHER_HASH = f"sha256:{base32.encode(bytes(32))}"
PATH = StorePath("0" * 32, "hello-2.12")
FIELDS = {
    "StorePath": str(PATH),
    "URL": "nar/abc.nar.xz",
    "Compression": "xz",
    "FileHash": OTHER_HASH,
    "FileSize": "50",
    "NarHash": HASH,
    "NarSize": "120",
    "References": f"{'1' * 32}-glibc-2.38 {PATH.base_name}",
    "Deriver": f"{'2' * 32}-hello-2.12.drv",
    "Sig": "cache.example-1:c2ln",
    "CA": f"fixed:r:{HASH}",
}


def text(**changes: str | None) -> bytes:
    """FIELDS with changes; None leaves a field out."""
    fields = {**FIELDS, **changes}
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value is not None).encode()


hashes = st.binary(min_size=32, max_size=32).map(lambda value: f"sha256:{base32.encode(value)}")
words = st.from_regex(r"[!-~]{1,30}", fullmatch=True)
infos = st.builds(
    PathInfo,
    store_paths,
    hashes,
    st.integers(1, (1 << 63) - 1),
    st.sets(store_paths, max_size=5).map(lambda paths: tuple(sorted(paths))),
    st.none() | store_paths,
    st.lists(words, max_size=3).map(tuple),
    st.none() | words,
    st.just("https://cache.example"),
)
narinfos = st.builds(
    NarInfo,
    infos,
    st.from_regex(r"nar/[a-z0-9]{1,60}(\.nar)?(\.(xz|zst))?(\?hash=[a-z0-9]{1,5})?", fullmatch=True),
    st.sampled_from(["none", "xz", "zstd", "bzip2", "br", "gzip"]),
    st.none() | hashes,
    st.none() | st.integers(1, (1 << 63) - 1),
)


@given(narinfos)
def test_parse_undoes_bytes(narinfo: NarInfo) -> None:
    assert NarInfo.parse(bytes(narinfo), "https://cache.example") == narinfo


def parsed(content: bytes) -> NarInfo | None:
    try:
        return NarInfo.parse(content)
    except InvalidFormat:
        return None


@given(
    narinfos,
    st.integers(0, 2000),
    st.sampled_from("\n\r\v\0 /.:,-+09aeE\xa0é") | st.characters(codec="utf-8"),
)
def test_the_usual_is_read_like_all_else(narinfo: NarInfo, place: int, character: str) -> None:
    """A line that nobody knows makes it unusual."""
    for content in (bytes(narinfo).decode(), text().decode()):
        place %= len(content)
        changed = f"{content[:place]}{character}{content[place + 1 :]}"
        for one in (content, changed):
            assert parsed(one.encode()) == parsed(f"Unknown: x\n{one}".encode())


def test_all_of_one() -> None:
    references = (PATH, StorePath("1" * 32, "glibc-2.38"))
    info = PathInfo(
        PATH,
        HASH,
        120,
        references,
        StorePath("2" * 32, "hello-2.12.drv"),
        ("cache.example-1:c2ln",),
        f"fixed:r:{HASH}",
        "https://cache.example",
    )
    expected = NarInfo(info, "nar/abc.nar.xz", "xz", OTHER_HASH, 50)
    assert NarInfo.parse(text(), "https://cache.example") == expected


@given(st.binary(min_size=32, max_size=32))
def test_hashes_in_other_notations(digest: bytes) -> None:
    encoded = base64.b64encode(digest).decode()
    for given_hash in (f"sha256:{digest.hex()}", f"sha256:{digest.hex().upper()}", f"sha256-{encoded}",
                       f"sha256:{encoded}"):  # fmt: skip
        narinfo = NarInfo.parse(text(NarHash=given_hash, FileHash=given_hash))
        assert narinfo.info.nar_hash == narinfo.file_hash == f"sha256:{base32.encode(digest)}"


@pytest.mark.parametrize("compression", [None, ""])
def test_no_compression_means_bzip2(compression: str | None) -> None:
    assert NarInfo.parse(text(Compression=compression)).compression == "bzip2"


def test_what_may_be_missing_or_repeated() -> None:
    least = NarInfo.parse(
        text(Compression="none", FileHash=None, FileSize="0", Deriver=None, Sig=None, CA=None, References="")
    )
    assert least == NarInfo(PathInfo(PATH, HASH, 120, ()), "nar/abc.nar.xz", "none")
    assert NarInfo.parse(text(Deriver="unknown-deriver")).info.deriver is None
    assert NarInfo.parse(text().replace(b"References: ", b"References:\nReferencesX: ")).info.references == ()
    more = b"".join([text(), b"Sig: other:eA==\nNew: \xc3\xa9\x07\nNew: two\n"])
    narinfo = NarInfo.parse(more)
    assert narinfo.info.signatures == ("cache.example-1:c2ln", "other:eA==")
    assert replace(
        narinfo, info=replace(narinfo.info, signatures=("cache.example-1:c2ln",))
    ) == NarInfo.parse(text())


def test_references_are_sorted_and_there_once() -> None:
    b, a = f"{'b' * 32}-b", f"{'a' * 32}-a"
    assert [path.base_name for path in NarInfo.parse(text(References=f"{b} {a} {b}")).info.references] == [
        a,
        b,
    ]


@pytest.mark.parametrize("key", ["StorePath", "URL", "NarHash", "NarSize", "References"])
def test_what_must_be_there(key: str) -> None:
    with pytest.raises(InvalidFormat, match=f"it has no {key}"):
        NarInfo.parse(text(**{key: None}))


@pytest.mark.parametrize("key", [key for key in FIELDS if key != "Sig"])
def test_what_must_not_be_there_twice(key: str) -> None:
    with pytest.raises(InvalidFormat, match=f"{key} is there twice"):
        NarInfo.parse(text() + f"{key}: {FIELDS[key]}\n".encode())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "letters, digits"),
        ("/nar/abc.nar", "empty parts"),
        ("//evil.example/abc.nar", "empty parts"),
        ("https://evil.example/abc.nar", "letters, digits"),
        ("file:abc", "letters, digits"),
        ("../abc.nar", "'..'"),
        ("nar/../../abc.nar", "'..'"),
        ("nar/..", "'..'"),
        ("nar/./abc.nar", "'..'"),
        ("nar//abc.nar", "empty parts"),
        ("nar/%2e%2e/abc.nar", "letters, digits"),
        ("nar\\abc", "letters, digits"),
        ("nar/a bc", "letters, digits"),
        ("nar/abc#x", "letters, digits"),
        ("nar/é", "letters, digits"),
        ("?x=1", "empty parts"),
        ("nar/abc?x=/../y", "'..'"),
        ("n" * 1025, "longer than 1024"),
    ],
)
def test_urls_that_could_lead_elsewhere(url: str, reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason):
        NarInfo.parse(text(URL=url))


def test_urls_of_other_servers() -> None:
    for url in (
        "nar/abc.nar?hash=def&x=1",
        "nar/0abc-1def.nar",
        "a/b/c~d_e+f=g,h@i.nar",
        "abc..nar",
        "n" * 1024,
    ):
        assert NarInfo.parse(text(URL=url)).url == url


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (text()[:-1], "truncated"),
        (b"\n", "a key, ':'"),
        (b"<html>\n", "a key, ':'"),
        (text().replace(b"URL: ", b"URL:"), "a key, ':', a blank"),
        (text() + b"\xff: x\n", "not UTF-8"),
        (text().replace(b"\n", b"\r\n"), "not printable"),
        (text(Sig="a:b\x1b[31m"), "not printable"),
        (text(CA="fixed:\u2028"), "not printable"),
        (text() + b"Sig: a:b\n" * 64, "more than 64 signatures"),
        (text(StorePath="/nix/store/x"), "store path"),
        (text(StorePath=f"/gnu/store/{PATH.base_name}"), "direct child of /nix/store"),
        (text(StorePath=f"/nix/store/{PATH.base_name}/../x"), "direct child"),
        (text(References="glibc"), "32 characters"),
        (text(References=str(PATH)), "32 characters"),
        (text(References=f"{PATH.base_name}  {PATH.base_name}"), "32 characters"),
        (text(Deriver="/nix/store/x"), "32 characters"),
        (text(NarHash=""), "it must begin with"),
        (text(NarHash="sha1:" + "0" * 32), "only sha256"),
        (text(NarHash="blake3:" + "0" * 52), "it must begin with"),
        (text(NarHash=HASH[:-1]), "encoding of 32 bytes|has 32 bytes"),
        (text(NarHash="sha256:" + "u" * 52), "alphabet"),
        (text(NarHash="sha256:" + "z" * 52), "padding bits"),
        (text(NarHash="sha256-" + "A" * 42 + "B="), "has 32 bytes"),
        (text(NarHash="sha256-" + DIGEST.hex()), "has 32 bytes"),
        (text(FileHash="sha256:" + "g" * 64), "encoding of 32|has 32 bytes"),
        (text(NarSize="0"), "no NAR is empty"),
        (text(NarSize="-1"), "NarSize must be a number"),
        (text(NarSize=" 1"), "NarSize must be a number"),
        (text(NarSize="1_0"), "NarSize must be a number"),
        (text(NarSize="٣"), "NarSize must be a number"),
        (text(NarSize="9223372036854775808"), "NarSize must be a number"),
        (text(NarSize="9" * 100_000), "NarSize must be a number"),
        (text(FileSize="x"), "FileSize must be a number"),
        (text(Compression="../xz"), "name of a compression"),
        (bytes(MAX_SIZE + 1), "larger than"),
        (b"x" * MAX_SIZE + b"\n", "larger than"),
    ],
)
def test_malformed(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason) as raised:
        NarInfo.parse(content)
    assert len(str(raised.value)) < 600


@given(st.binary(max_size=300))
def test_any_bytes(junk: bytes) -> None:
    with pytest.raises(InvalidFormat):
        NarInfo.parse(junk + b"\n")


def test_a_line_can_not_be_smuggled_in() -> None:
    """What is written of what was read says nothing new."""
    content = text(Sig="a:b\vURL: nar/other.nar", CA=None)
    with pytest.raises(InvalidFormat):
        NarInfo.parse(content)
