import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import base32
from nixery_snap.nix.content_address import ContentAddress, Method, flat_hash, recomputes, store_path
from nixery_snap.nix.hashes import SIZES, Hash
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath

A, B = StorePath("a" * 32, "a"), StorePath("b" * 32, "b")
DIGEST = hashlib.sha256(b"content").digest()
SHA256 = f"sha256:{base32.encode(DIGEST)}"
OTHER = f"sha256:{base32.encode(bytes(32))}"

hashes = st.sampled_from(sorted(SIZES)).flatmap(
    lambda algorithm: st.builds(
        Hash, st.just(algorithm), st.binary(min_size=SIZES[algorithm], max_size=SIZES[algorithm])
    )
)
addresses = st.builds(ContentAddress, st.sampled_from([Method.FLAT, Method.NAR]), hashes) | st.builds(
    ContentAddress, st.just(Method.TEXT), hashes.filter(lambda found: found.algorithm == "sha256")
)


@given(addresses)
def test_parse_undoes_str(address: ContentAddress) -> None:
    assert ContentAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must begin with text: or fixed:"),
        ("source:" + SHA256, "must begin with text: or fixed:"),
        ("fixed:", "must begin with"),
        ("fixed:git:sha1:" + "0" * 32, "must begin with"),
        ("fixed:r:blake3:" + "0" * 52, "must begin with"),
        ("fixed:r:" + SHA256[:-1], "32 bytes"),
        ("fixed:r:" + SHA256 + "0", "32 bytes"),
        ("text:sha1:" + "0" * 32, "a text has its sha256"),
        ("text:r:" + SHA256, "must begin with"),
    ],
)
def test_malformed(text: str, reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason):
        ContentAddress.parse(text)


def info(address: str, *references: StorePath, nar_hash: str = SHA256, name: str = "name") -> PathInfo:
    """With the path that follows from the rest."""
    path = store_path(name, ContentAddress.parse(address), references)
    return PathInfo(path, nar_hash, 120, references, content_address=address)


@pytest.mark.parametrize(
    ("right", "flat"),
    [
        (info(f"fixed:r:{SHA256}"), None),
        (info(f"fixed:r:{SHA256}", A, B), None),
        (info(f"text:{SHA256}", nar_hash=OTHER), DIGEST),
        (info(f"text:{SHA256}", A, B, nar_hash=OTHER), DIGEST),
        (info(f"fixed:{SHA256}", nar_hash=OTHER), DIGEST),
    ],
)
def test_recomputes(right: PathInfo, flat: bytes | None) -> None:
    assert recomputes(right)
    assert recomputes(replace(right, references=right.references[::-1]))
    assert flat_hash(right) == flat
    for wrong in (
        replace(right, path=StorePath(right.path.hash_part, "other")),
        replace(right, path=StorePath("0" * 32, right.path.name)),
        replace(right, references=(StorePath("c" * 32, "c"),)),
        replace(right, content_address=None),
        replace(right, content_address=""),
        replace(right, content_address="fixed:r:sha256:junk"),
        replace(right, content_address=str(right.content_address).replace(SHA256, OTHER)),
        replace(right, references=(*right.references, right.path)),
    ):
        assert not recomputes(wrong)


def test_a_nar_hash_that_lies() -> None:
    assert not recomputes(info(f"fixed:r:{SHA256}", A, nar_hash=OTHER))


def test_what_the_content_could_not_be_compared_with() -> None:
    address = ContentAddress.parse(f"fixed:r:{SHA256}")
    path = store_path("name", address, (A,), self_reference=True)
    assert path != store_path("name", address, (A,))
    assert not recomputes(PathInfo(path, OTHER, 120, (A, path), content_address=str(address)))
    sha1 = ContentAddress(Method.FLAT, Hash("sha1", bytes(20)))
    found = PathInfo(store_path("name", sha1), OTHER, 120, (), content_address=str(sha1))
    assert not recomputes(found)
    assert flat_hash(found) is None


@pytest.mark.parametrize(
    ("address", "references", "self_reference"),
    [
        (f"text:{SHA256}", (), True),
        (f"fixed:{SHA256}", (A,), False),
        (f"fixed:{SHA256}", (), True),
        ("fixed:r:sha1:" + "0" * 32, (A,), False),
        ("fixed:r:sha1:" + "0" * 32, (), True),
    ],
)
def test_references_that_cannot_be(
    address: str, references: tuple[StorePath, ...], self_reference: bool
) -> None:
    with pytest.raises(InvalidFormat, match="no such references"):
        store_path("name", ContentAddress.parse(address), references, self_reference)


@pytest.mark.parametrize("name", ["", ".", "a/b", "a b", "x" * 212])
def test_names_no_path_can_have(name: str) -> None:
    with pytest.raises(InvalidFormat):
        store_path(name, ContentAddress.parse(f"text:{SHA256}"))
