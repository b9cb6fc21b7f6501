"""What Nix's messages say about the machine."""

import pytest

from nixery_snap.errors import NixDaemonUnreachable, NixStoreForbidden, NixStoreFull
from nixery_snap.nix.ground import ground_error

# What Nix 2.8 and 2.26 say.
GROUND = {
    "cannot connect to socket at '/nix/var/nix/daemon-socket/socket': No such file or directory": NixDaemonUnreachable,
    "cannot connect to socket at '/run/x': Connection refused": NixDaemonUnreachable,
    "cannot open connection to remote store 'daemon': closed": NixDaemonUnreachable,
    "writing to file: No space left on device": NixStoreFull,
    "executing SQLite statement 'insert …': database or disk is full (in '/nix/var/nix/db/db.sqlite')": NixStoreFull,
    "opening lock file '/nix/var/nix/db/big-lock': Permission denied": NixStoreForbidden,
    "creating directory '/nix/store/.links': Read-only file system": NixStoreForbidden,
}


@pytest.mark.parametrize("message", GROUND)
def test_the_machine(message: str) -> None:
    error = ground_error(message)
    assert type(error) is GROUND[message]
    assert message.partition(":")[0] in str(error)


@pytest.mark.parametrize(
    "message",
    [
        "attribute 'x' missing",
        "opening file '/nix/store/x/y': No such file or directory",
        "Permission denied",
    ],
)
def test_not_the_machine(message: str) -> None:
    assert ground_error(message) is None
