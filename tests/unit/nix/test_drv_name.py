import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.nix.drv_name import without_version


# As `builtins.parseDrvName` splits them.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openssl-3.0.14-bin", "openssl"),
        ("python3.11-requests-2.32", "python3.11-requests"),
        ("bash-interactive-5.2-p37", "bash-interactive"),
        ("nix-2.8.0", "nix"),
        ("hello", "hello"),
        ("hello-", "hello-"),
        ("a--1", "a"),
        ("0ad-0.0.26", "0ad"),
        ("source", "source"),
        ("font-awesome-v5", "font-awesome-v5"),
        ("x-_1", "x"),
    ],
)
def test_without_version(name: str, expected: str) -> None:
    assert without_version(name) == expected


@given(st.from_regex(r"[a-z0-9._+?=-]{1,40}", fullmatch=True))
def test_a_name_has_no_version_left(name: str) -> None:
    short = without_version(name)
    assert name.startswith(short)
    assert without_version(short) == short
