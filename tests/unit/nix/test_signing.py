import base64
import pickle
import traceback
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import base32
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.signing import PublicKey, SecretKey, fingerprint, signers, verified_by
from nixery_snap.nix.store_path import StorePath

OFFICIAL = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
# Fixed, as it stands in the names of tests; it signs nothing else.
KEY = SecretKey.parse(
    "cache.example-1:kyKuvMpn8Ev8/9aXdObwDMqRRbq/E4Hp7g+Z/28uP3wWbfbqdse96v1WV2IUXhf56O8J18u7UsMQyAQEY0YOUg=="
)
OTHER = SecretKey.generate("other.example-1")
A, B = StorePath("a" * 32, "a"), StorePath("b" * 32, "b")
INFO = PathInfo(A, f"sha256:{base32.encode(bytes(32))}", 120, (A, B))
SIGNED = replace(INFO, signatures=(KEY.sign(INFO),))


def test_what_is_signed() -> None:
    expected = (
        b"1;/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a;sha256:0000000000000000000000000000000000000000000000000000"
        b";120;/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a,/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-b"
    )
    assert fingerprint(INFO) == expected
    assert fingerprint(replace(INFO, references=())).endswith(b";120;")
    assert fingerprint(replace(INFO, references=(B, A))) == expected


def test_keys_and_their_texts() -> None:
    assert str(PublicKey.parse(OFFICIAL)) == OFFICIAL
    assert PublicKey.parse(OFFICIAL) == PublicKey.parse(OFFICIAL)
    assert len({PublicKey.parse(OFFICIAL), PublicKey.parse(OFFICIAL), KEY.public_key}) == 2
    again = SecretKey.parse(KEY.text + "\n")
    assert (again.text, again.public_key) == (KEY.text, KEY.public_key)
    assert again.sign(INFO) == KEY.sign(INFO)


def test_the_secret_shows_in_text_alone() -> None:
    seed = base64.b64decode(KEY.text.partition(":")[2])[:32]
    for shown in (str(KEY), repr(KEY), f"{KEY}", repr([KEY]), str(vars(SecretKey))):
        assert KEY.text.partition(":")[2][:40] not in shown
        assert seed.hex() not in shown
    assert "cache.example-1" in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)


def test_verification() -> None:
    assert verified_by(SIGNED, [KEY.public_key]) == KEY.public_key
    assert verified_by(SIGNED, [OTHER.public_key, KEY.public_key]) == KEY.public_key
    assert verified_by(SIGNED, [OTHER.public_key]) is None
    assert verified_by(SIGNED, []) is None
    assert verified_by(INFO, [KEY.public_key]) is None
    both = replace(SIGNED, signatures=("x:eA==", OTHER.sign(INFO), *SIGNED.signatures))
    assert verified_by(both, [KEY.public_key]) == KEY.public_key
    assert signers(both) == ("x", "other.example-1", "cache.example-1")
    assert signers(INFO) == ()


def test_another_key_of_the_same_name() -> None:
    namesake = SecretKey.generate("cache.example-1")
    assert verified_by(SIGNED, [namesake.public_key]) is None
    assert verified_by(SIGNED, [namesake.public_key, KEY.public_key]) == KEY.public_key
    renamed = OTHER.sign(INFO).replace("other.example-1", "cache.example-1")
    assert verified_by(replace(INFO, signatures=(renamed,)), [KEY.public_key, OTHER.public_key]) is None


def test_what_is_signed_and_what_is_not() -> None:
    keys = [KEY.public_key]
    for changed in (
        replace(SIGNED, path=B),
        replace(SIGNED, nar_hash=f"sha256:{base32.encode(bytes([1]) + bytes(31))}"),
        replace(SIGNED, nar_size=121),
        replace(SIGNED, references=(A,)),
        replace(SIGNED, references=()),
    ):
        assert verified_by(changed, keys) is None
    for unsigned in (
        replace(SIGNED, deriver=B),
        replace(SIGNED, content_address="text:sha256:0"),
        replace(SIGNED, origin="https://cache.example"),
    ):
        assert verified_by(unsigned, keys) == KEY.public_key


@given(st.integers(0, 511))
def test_one_bit_off(bit: int) -> None:
    name, _, encoded = SIGNED.signatures[0].partition(":")
    signature = bytearray(base64.b64decode(encoded))
    signature[bit // 8] ^= 1 << bit % 8
    changed = f"{name}:{base64.b64encode(bytes(signature)).decode()}"
    assert verified_by(replace(INFO, signatures=(changed,)), [KEY.public_key]) is None


@pytest.mark.parametrize(
    "signature",
    [
        "",
        ":",
        "cache.example-1",
        "cache.example-1:",
        "cache.example-1:!!",
        "cache.example-1:eA==",
        f"cache.example-1:{base64.b64encode(bytes(64)).decode()}",
        f"cache.example-1:{base64.b64encode(bytes(65)).decode()}",
        "cache.example-1:é",
        KEY.sign(INFO) + "\n",
    ],
)
def test_malformed_signatures_verify_nothing(signature: str) -> None:
    info = replace(INFO, signatures=(signature,))
    assert verified_by(info, [KEY.public_key]) is None
    assert verified_by(replace(info, signatures=(signature, *SIGNED.signatures)), [KEY.public_key])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "base 64"),
        ("cache.example-1", "base 64"),
        ("cache.example-1:!", "base 64"),
        ("cache.example-1:eA==", "32 bytes"),
        ("cache.example-1:" + "A" * 43, "base 64"),
        (OFFICIAL.replace("cache", "my cache"), "name"),
        (OFFICIAL.replace("cache.nixos.org-1", ""), "name"),
        (KEY.text, "secret key"),
        (KEY.text.partition(":")[2], "base 64"),
        (KEY.text[:-1], "base 64"),
    ],
)
def test_malformed_public_keys(text: str, reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason) as raised:
        PublicKey.parse(text)
    assert KEY.text.partition(":")[2] not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "name"),
        (KEY.text.partition(":")[2], "name"),
        (":" + KEY.text.partition(":")[2], "name"),
        (KEY.text[:-8], "64 bytes in base 64"),
        (KEY.text[:-1], "64 bytes in base 64"),
        (str(KEY.public_key), "64 bytes in base 64"),
        (KEY.text[:-12] + OTHER.text[-12:], "belong together"),
        (KEY.text + "!", "64 bytes in base 64"),
    ],
)
def test_malformed_secret_keys_are_not_shown(text: str, reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason) as raised:
        SecretKey.parse(text)
    secret = KEY.text.partition(":")[2][:30]
    assert secret not in "".join(traceback.format_exception(raised.value))
    assert secret not in repr(raised.value.value)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\n", "é", "x" * 256])
def test_names_no_key_can_have(name: str) -> None:
    with pytest.raises(InvalidFormat):
        SecretKey.generate(name)
