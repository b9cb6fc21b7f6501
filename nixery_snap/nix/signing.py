"""Signatures of path infos: ed25519 over a fingerprint (Nix manual, "Store Object Signing"; src/libutil/signature)."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, NoReturn, Self

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.path_info import PathInfo

_KEY_NAME: Final = re.compile(r"[!-9;-~]{1,255}")  # printable, no ':', no blank
_SIZE, _SIGNATURE_SIZE = 32, 64  # bytes


def fingerprint(info: PathInfo) -> bytes:
    """What is signed of a path info: neither where it is fetched from nor how it is compressed."""
    references = ",".join(sorted(map(str, info.references)))
    return f"1;{info.path};{info.nar_hash};{info.nar_size};{references}".encode()


@dataclass(frozen=True, slots=True)
class PublicKey:
    """`key` is the 32 bytes of the ed25519 key; the name tells signatures apart and proves nothing."""

    name: str
    key: bytes

    def __post_init__(self) -> None:
        if not _KEY_NAME.fullmatch(self.name):
            raise InvalidFormat("public key", self.name, "its name must be printable, without blanks and ':'")
        if len(self.key) != _SIZE:
            raise InvalidFormat("public key", self.name, f"an ed25519 key has {_SIZE} bytes")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `<name>:<base 64>`; raises InvalidFormat."""
        name, separator, encoded = text.partition(":")
        key = _base64(encoded)
        if not separator or key is None:
            # Nor is what comes after a name shown: it may be a secret key that is here by mistake.
            shown = name if separator or len(name) < _SIZE else "…"
            raise InvalidFormat("public key", shown, "it must be a name, ':' and base 64")
        if len(key) == 2 * _SIZE:
            raise InvalidFormat(
                "public key", name, "this is a secret key: give nix key convert-secret-to-public"
            )
        return cls(name, key)

    def __str__(self) -> str:
        return f"{self.name}:{base64.b64encode(self.key).decode()}"

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Other threads go on meanwhile."""
        try:
            crypto_sign_open(signature + message, self.key)
        except BadSignatureError:
            return False
        return True


@dataclass(frozen=True, slots=True, eq=False)
class SecretKey:
    """Shows its secret in `text` alone, never in `str` or `repr`."""

    name: str
    _key: SigningKey = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is not pickled")

    @classmethod
    def generate(cls, name: str) -> Self:
        """Raises InvalidFormat for a name that no key can have."""
        return cls(PublicKey(name, bytes(_SIZE)).name, SigningKey.generate())

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `<name>:<base 64>` as `nix key generate-secret` prints it; raises InvalidFormat."""
        name, separator, encoded = text.strip().partition(":")
        # A text without a name may be all secret, so none of it is shown.
        if not separator or not _KEY_NAME.fullmatch(name):
            raise InvalidFormat("secret key", "…", "it must begin with a printable name and ':'")
        value = _base64(encoded)
        # Messages name the key only: whatever follows the name may be the secret.
        if value is None or len(value) != 2 * _SIZE:
            raise InvalidFormat(
                "secret key", name, f"after its name it must have {2 * _SIZE} bytes in base 64"
            )
        key = cls(name, SigningKey(value[:_SIZE]))
        if key.public_key.key != value[_SIZE:]:
            raise InvalidFormat("secret key", name, "its secret and its public half do not belong together")
        return key

    @property
    def text(self) -> str:
        """The secret, in the form that `parse` and Nix's `secret-key-files` take."""
        value = bytes(self._key) + self.public_key.key
        return f"{self.name}:{base64.b64encode(value).decode()}"

    @property
    def seed(self) -> bytes:
        """The secret itself."""
        return bytes(self._key)

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(self.name, bytes(self._key.verify_key))

    def sign(self, info: PathInfo) -> str:
        """The signature as `<name>:<base 64>`."""
        return f"{self.name}:{base64.b64encode(self._key.sign(fingerprint(info)).signature).decode()}"


def verified_by(info: PathInfo, keys: Collection[PublicKey]) -> PublicKey | None:
    """The first of `keys` under which a signature of `info` verifies."""
    message = b""
    for text in info.signatures:
        name, _, encoded = text.partition(":")
        for key in keys:
            if key.name != name:
                continue
            signature = _base64(encoded)
            if signature is None or len(signature) != _SIGNATURE_SIZE:
                break
            message = message or fingerprint(info)
            if key.verifies(signature, message):
                return key
    return None


def signers(info: PathInfo) -> tuple[str, ...]:
    """The names of the keys that claim to have signed `info`."""
    return tuple(dict.fromkeys(text.partition(":")[0] for text in info.signatures))


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None
