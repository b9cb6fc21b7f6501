import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import base32
from tests.integration.need import need


@given(st.binary(max_size=80))
def test_decode_undoes_encode(content: bytes) -> None:
    assert base32.decode(base32.encode(content), len(content)) == content


@pytest.mark.parametrize(("algorithm", "size"), [("sha256", 32), ("sha1", 20)])
@given(data=st.data())
def test_one_letter_off_is_another_value_or_none(algorithm: str, size: int, data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=size, max_size=size))
    text = base32.encode(content)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(base32.ALPHABET).filter(lambda letter: letter != text[place]))
    changed = text[:place] + other + text[place + 1 :]
    try:
        found = base32.decode(changed, size)
    except InvalidFormat:
        found = None
    assert found != content
    if place > 0:  # only the first letter has padding bits
        assert found is not None


def test_nix_writes_the_same() -> None:
    need("nix-hash")
    values = [bytes(32), b"\xff" * 32, *(bytes([1 << bit]) + bytes(31) for bit in range(8))]
    values += [bytes((7 * i * i + seed * j) % 256 for j in range(32)) for i, seed in enumerate(range(1, 200))]
    shown = subprocess.run(
        ["nix-hash", "--type", "sha256", "--to-base32", *(value.hex() for value in values)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert [base32.encode(value) for value in values] == shown


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0" * 51, "52 characters"),
        ("0" * 53, "52 characters"),
        ("e" + "0" * 51, "alphabet"),
        ("0" * 51 + "U", "alphabet"),
        ("0" * 51 + "é", "alphabet"),
        ("z" + "0" * 51, "padding"),
        ("2" + "0" * 51, "padding"),
    ],
)
def test_malformed(text: str, reason: str) -> None:
    with pytest.raises(InvalidFormat, match=reason):
        base32.decode(text, 32)
