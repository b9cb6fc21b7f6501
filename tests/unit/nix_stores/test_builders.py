from pathlib import Path

import pytest

from nixery_snap.errors import SettingsError
from nixery_snap.nix_stores.builders import RemoteBuilder, parse_builders

HERE = "the system of this machine"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ssh://me@one aarch64-linux", RemoteBuilder("ssh://one", "aarch64-linux", "ssh://me@one")),
        ("me@one", RemoteBuilder("ssh://one", HERE, "ssh://me@one")),
        (
            "ssh-ng://one?x=1 a,b /key 4 1 kvm - a+b=",
            RemoteBuilder(
                "ssh-ng://one",
                "a,b",
                "ssh-ng://one?x=1&ssh-key=/key&base64-ssh-public-host-key=a%2Bb%3D",
            ),
        ),
        (
            "ssh://one - - 4 1 - - k",
            RemoteBuilder("ssh://one", HERE, "ssh://one?base64-ssh-public-host-key=k"),
        ),
        ("/srv/other x /key", RemoteBuilder("/srv/other", "x", "/srv/other")),
        ("daemon", RemoteBuilder("daemon", HERE, "daemon")),
    ],
)
def test_a_machine(line: str, expected: RemoteBuilder) -> None:
    assert parse_builders(line) == [expected]


def test_several(tmp_path: Path) -> None:
    (tmp_path / "machines").write_text("# ours\ntwo x # slow\n\nthree x\n")
    found = parse_builders(f"one x ; @{tmp_path}/machines\nfour x;")
    assert [machine.name for machine in found] == [
        f"ssh://{name}" for name in ("one", "two", "three", "four")
    ]
    assert parse_builders("") == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "round").write_text(f"@{tmp_path}/round")
    for name in ("none", "round"):
        with pytest.raises(SettingsError, match=rf"nix.builders: .*{name} cannot be read"):
            parse_builders(f"@{tmp_path}/{name}")


def test_what_is_nobodys_business() -> None:
    [machine] = parse_builders("ssh://me@one?remote-store=/srv x /key 1 1 - - hostkey")
    assert not {"/srv", "/key", "me@"} & set(repr(machine).split())
    assert "/key" not in repr(machine)
