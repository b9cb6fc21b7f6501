import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidDigest
from nixery_snap.oci.digest import Digest

digests = st.one_of(
    st.binary(min_size=32, max_size=32).map(lambda raw: Digest("sha256", raw.hex())),
    st.binary(min_size=64, max_size=64).map(lambda raw: Digest("sha512", raw.hex())),
)


@given(digests)
def test_parse_undoes_str(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest


@given(st.binary())
def test_of_content(content: bytes) -> None:
    assert str(Digest.of(content)) == f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        ":" + "0" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "0" * 63 + "\n",
        "sha256:" + "0" * 64 + "\n",
        "sha256:" + "\u0660" * 64,
        "SHA256:" + "0" * 64,
        "sha512:" + "0" * 64,
        "md5:" + "0" * 32,
        "sha256:../" + "0" * 61,
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest.parse(text)
