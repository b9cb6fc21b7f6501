"""The key that signs what our binary cache publishes, as a file."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Final

import structlog

from nixery_snap.errors import InvalidFormat, SettingsError
from nixery_snap.nix.signing import SecretKey
from nixery_snap.ports import Records

log = structlog.get_logger()

SIGNING_KEY: Final = "binary_cache.signing_key_file"
_MAX_BYTES: Final = 4096
_OTHERS: Final = 0o077


def load_signing_key(path: Path | None, *, create: bool, setting: str = SIGNING_KEY) -> SecretKey:
    """From a file as `nix key generate-secret` makes it; an absent one is made where `create` says so.

    Without a path, a key for this process alone. `setting` is the one that names the file. Raises SettingsError, which
    never tells what the file holds.
    """
    if path is None:
        log.warning("signing-key-not-kept", reason=f"there is no directory for it: name {setting}")
        return SecretKey.generate(_name())
    try:
        if create and not path.exists():
            _create(path)
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS and not _is_credential(path):
                raise SettingsError(setting, f"others may read {path}: chmod 600 it, and consider a new key")
            content = file.read(_MAX_BYTES)
        return SecretKey.parse(content.decode().strip())
    except (OSError, UnicodeDecodeError, InvalidFormat) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no key"
        raise SettingsError(
            setting,
            f"{path} cannot be used: {reason}; `nix key generate-secret --key-name NAME` makes one",
        ) from None


async def agree_on_key(key: SecretKey, records: Records) -> None:
    """Servers that share a store must sign with the same key, or each would undo what others have signed.

    Raises SettingsError.
    """
    mine = {"publicKey": str(key.public_key)}
    # A disk that cannot be written still can be served from.
    recorded = await records.get("signing-key", "in-use") or await records.put("signing-key", "in-use", mine)
    if recorded != mine:
        raise SettingsError(
            "binary_cache.signing_key_file",
            f"the binary cache of this storage is signed with {recorded['publicKey']}, and this server has"
            f" {mine['publicKey']}: name the same key file on all servers that share it (the first server's is"
            " secrets/signing-key in its state directory unless its settings say otherwise), or, to change the key,"
            " stop them all and remove the object records/signing-key/in/in-use.json",
        )


def _create(path: Path) -> None:
    """All of it or nothing, and whoever of several processes comes first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)  # readable for us alone
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{SecretKey.generate(_name()).text}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return
        log.info("signing-key-made", path=str(path))
    finally:
        Path(name).unlink()


def _is_credential(path: Path) -> bool:
    """Whether systemd keeps it from others: by the directory, and an ACL that looks like the group's rights."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return bool(directory) and path.parent == Path(directory)


def _name() -> str:
    """As is the custom: host and number."""
    host = "".join(
        letter for letter in socket.gethostname() if letter.isascii() and (letter.isalnum() or letter in "-.")
    )
    return f"{host or 'nixery-snap'}-1"
