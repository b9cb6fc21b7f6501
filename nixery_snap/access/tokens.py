"""Our own tokens, as the Docker token protocol has them (distribution, "Token Authentication Specification").

Each is good for some minutes, and for the repositories that it was asked for. Rules are looked at again when it is
used, so that nothing outlives a change of them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixery_snap.access.identity import Identity

_ALGORITHM: Final = "EdDSA"
_LEEWAY_SECONDS: Final = 5  # clocks of replicas
_REQUIRED: Final = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"]


class Tokens:
    """`service` is issuer and audience; `claims` are the names of those that are worth keeping in a token."""

    def __init__(
        self,
        seed: bytes,
        key_id: str,
        service: str,
        ttl_seconds: int,
        claims: Collection[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`seed`: 32 secret bytes, the ed25519 key."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key()
        self._key_id = key_id
        self.service = service
        self.ttl_seconds = ttl_seconds
        self._claims = frozenset(claims)
        self._clock = clock

    def issue(self, who: Identity, repositories: Collection[str]) -> tuple[str, int]:
        """The token and when it was made, in seconds since the epoch."""
        now = int(self._clock())
        payload = {
            "iss": self.service,
            "aud": self.service,
            "sub": who.user,
            "iat": now,
            "nbf": now,
            "exp": now + self.ttl_seconds,
            "jti": secrets.token_hex(16),
            "access": [
                {"type": "repository", "name": name, "actions": ["pull"]} for name in sorted(repositories)
            ],
            "claims": {name: value for name, value in who.claims.items() if name in self._claims},
        }
        return jwt.encode(payload, self._key, _ALGORITHM, headers={"kid": self._key_id}), now

    def verify(self, token: str, header: Mapping[str, Any]) -> Identity:
        """`header` is the token's, not to be trusted. Raises jwt.InvalidTokenError."""
        if header.get("kid") != self._key_id:
            raise jwt.InvalidKeyError("another key")
        payload = jwt.decode(
            token,
            self._public,
            algorithms=[_ALGORITHM],
            audience=self.service,
            issuer=self.service,
            leeway=_LEEWAY_SECONDS,
            options={"require": _REQUIRED, "strict_aud": True},
        )
        # What is signed by our key has the shape that we gave it.
        names = frozenset(one["name"] for one in payload["access"])
        return Identity(payload["sub"], payload["claims"], names)
