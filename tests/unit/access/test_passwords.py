from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import bcrypt
import pytest

from nixery_snap.access import passwords
from nixery_snap.access.passwords import PasswordFile, Passwords
from nixery_snap.errors import InvalidFormat, SettingsError, TooManyRequests


def line(user: str, password: str, cost: int = 4) -> str:
    return f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()}\n"


def write(file: Path, text: str | None) -> None:
    file.unlink()
    if text is not None:
        file.write_text(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text(f"# users\n\n{line('alice', 's3cret')}{line('zoë', 'pässword')}")
    return path


async def test_right_and_wrong(file: Path) -> None:
    users = Passwords(str(file))
    for user, password, right in (
        ("alice", "s3cret", True),
        ("alice", "s3cret", True),  # remembered
        ("zoë", "pässword", True),
        ("alice", "S3cret", False),
        ("alice", "", False),
        ("alice", "s3cret\0", False),
        ("alice", "s3cret ", False),
        ("Alice", "s3cret", False),
        ("alice ", "s3cret", False),
        ("bob", "s3cret", False),
        ("", "", False),
        ("alice", "\udcff", False),
        ("alice", "x" * 100, False),
    ):
        assert await users.verify(user, password) is right, (user, password)
    users.close()


async def test_long_passwords_are_cut_where_htpasswd_cuts_them(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"
    file.write_text(line("alice", "x" * 72))
    users = Passwords(str(file))
    assert await users.verify("alice", "x" * 80)
    assert not await users.verify("alice", "x" * 71)
    users.close()


async def test_strangers_cost_as_much(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash is computed for them too, at the cost that others have."""
    computed = []

    def matches(password: bytes, hashed: bytes) -> bool:
        computed.append(hashed)
        return True  # even then there is no such user

    monkeypatch.setattr(passwords, "_matches", matches)
    users = Passwords(str(file))
    assert not await users.verify("bob", "s3cret")
    assert await users.verify("alice", "s3cret")
    assert [hashed[:7] for hashed in computed] == [b"$2b$04$"] * 2
    assert not bcrypt.checkpw(b"s3cret", computed[0])
    users.close()


async def test_what_was_right_is_not_computed_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = Passwords(str(file))
    assert await users.verify("alice", "s3cret")
    monkeypatch.setattr(passwords, "_matches", None)  # would fail
    assert await users.verify("alice", "s3cret")
    users.close()


async def test_equal_questions_are_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def matches(password: bytes, hashed: bytes) -> bool:
        computed.append(password)
        time.sleep(0.05)
        return True

    monkeypatch.setattr(passwords, "_matches", matches)
    users = Passwords(str(file))
    assert all(await asyncio.gather(*(users.verify("alice", "s3cret") for _ in range(50))))
    assert len(computed) == 1
    users.close()


async def test_too_many_at_a_time(file: Path) -> None:
    users = Passwords(str(file))
    results = await asyncio.gather(
        *(users.verify("alice", f"guess {number}") for number in range(200)), return_exceptions=True
    )
    assert sum(isinstance(one, TooManyRequests) for one in results) == 200 - passwords._MAX_WAITING
    users.close()


async def test_changes_count_at_once(file: Path) -> None:
    users = Passwords(str(file))
    assert await users.verify("alice", "s3cret")
    write(file, line("alice", "new") + line("bob", "b"))
    assert not await users.verify("alice", "s3cret"), "although it was remembered"
    assert await users.verify("alice", "new")
    assert await users.verify("bob", "b")
    # A file that cannot be used changes nothing.
    write(file, "alice:plain\n")
    assert await users.verify("alice", "new")
    write(file, None)
    assert await users.verify("alice", "new")
    users.close()


@pytest.mark.parametrize(
    "text",
    [
        "alice:s3cret",
        "alice:{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
        "alice:$apr1$x$y",
        "alice",
        ":$2b$04$" + "a" * 53,
        "anonymous:$2b$04$" + "a" * 53,
        ("alice:$2b$04$" + "a" * 53 + "\n") * 2,
        "alice:$2b$04$" + "a" * 52,
        "alice:$2b$04$" + "a" * 53 + ":more",
    ],
)
def test_files_that_are_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFormat, match=r"line [12]") as raised:
        PasswordFile.parse(text)
    assert "s3cret" not in str(raised.value)
    (tmp_path / "htpasswd").write_text(text)
    with pytest.raises(SettingsError, match=r"auth\.htpasswd_file") as refused:
        Passwords(str(tmp_path / "htpasswd"))
    assert "s3cret" not in str(refused.value)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(SettingsError, match=os.fspath(path)):
            Passwords(str(path))


def test_nothing_shows_hashes(file: Path) -> None:
    assert "$2b$" not in repr(PasswordFile.parse(file.read_text()))
