"""Tokens of others: JWTs of a configured issuer (OpenID Connect Discovery 1.0; RFC 7517, RFC 7519, RFC 8725)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import jwt
import structlog

from nixery_snap.access.identity import Identity
from nixery_snap.access.safe_url import is_safe
from nixery_snap.errors import IssuerUnreachable

log = structlog.get_logger()

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_MAX_BYTES: Final = 1024 * 1024
_MAX_KEYS: Final = 100
_FRESH_SECONDS: Final = 3600  # keys that an issuer has withdrawn are taken no longer than that
_PAUSE_SECONDS: Final = 30  # between two questions: anybody can name a key that there is not
_LEEWAY_SECONDS: Final = 30
_MAX_USER: Final = 256
_KEY_TYPES: Final = ("RSA", "EC", "OKP")  # none that is secret


@dataclass(frozen=True, slots=True)
class IssuerOptions:
    """`url` is the issuer's name and where its configuration is found; `user_claim` says who somebody is."""

    name: str
    url: str
    audience: str
    algorithms: tuple[str, ...]
    user_claim: str


class Issuer:
    """Takes the tokens of one issuer; its keys are looked for when they are needed."""

    def __init__(
        self,
        options: IssuerOptions,
        session: aiohttp.ClientSession,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self._session = session
        self._clock = clock
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._read_at = self._asked_at = float("-inf")
        self._failure = ""
        self._asking = asyncio.Lock()

    async def verify(self, token: str, header: Mapping[str, Any]) -> Identity:
        """`header` is the token's, not to be trusted. Raises jwt.InvalidTokenError, IssuerUnreachable."""
        key_id = header.get("kid")
        if not isinstance(key_id, str | None):
            raise jwt.InvalidKeyError("no name of a key")
        claims = jwt.decode(
            token,
            await self._key(key_id),
            algorithms=list(self.options.algorithms),
            audience=self.options.audience,
            issuer=self.options.url,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["iss", "sub", "aud", "exp"], "enforce_minimum_key_length": True},
        )
        user = claims.get(self.options.user_claim)
        if not isinstance(user, str) or not 0 < len(user) <= _MAX_USER or not user.isprintable():
            raise jwt.InvalidTokenError(f"its {self.options.user_claim} is no name")
        return Identity(f"{self.options.name}:{user}", claims)

    async def _key(self, key_id: str | None) -> jwt.PyJWK:
        """A token that names no key is by the only one there is."""
        if self._is_due(key_id):
            async with self._asking:
                if self._is_due(key_id):
                    await self._ask()
        keys = self._keys
        if key_id is None and len(keys) == 1:
            return next(iter(keys.values()))
        if key_id in keys:
            return keys[key_id]
        if self._failure:
            raise IssuerUnreachable(self.options.name, self._failure)
        raise jwt.InvalidKeyError("no such key")

    def _is_due(self, key_id: str | None) -> bool:
        now = self._clock()
        wanted = now - self._read_at > _FRESH_SECONDS or (key_id is not None and key_id not in self._keys)
        return wanted and now - self._asked_at > _PAUSE_SECONDS

    async def _ask(self) -> None:
        self._asked_at = self._clock()
        try:
            self._keys = await self._read()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._failure = str(error) or type(error).__name__
            log.warning("issuer-unreachable", issuer=self.options.name, reason=self._failure)
            if self._asked_at - self._read_at > 2 * _FRESH_SECONDS:
                self._keys = {}
        else:
            self._read_at, self._failure = self._asked_at, ""

    async def _read(self) -> Mapping[str | None, jwt.PyJWK]:
        url = self.options.url
        configuration = await self._get(f"{url.rstrip('/')}/.well-known/openid-configuration")
        if configuration.get("issuer") != url:
            raise ValueError("its configuration is that of another issuer")
        place = configuration.get("jwks_uri")
        if not isinstance(place, str) or not is_safe(place):
            raise ValueError("its jwks_uri is no https URL")
        listed = (await self._get(place)).get("keys")
        if not isinstance(listed, list) or len(listed) > _MAX_KEYS:
            raise ValueError("its list of keys is none")
        return {key.key_id: key for value in listed if (key := _public_key(value)) is not None}

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._session.get(url, timeout=_TIMEOUT, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > _MAX_BYTES:
                    raise ValueError("it answers with too much")
        value = json.loads(content)
        if not isinstance(value, dict):
            raise ValueError("it answers with JSON that is no object")
        return value


def _public_key(value: object) -> jwt.PyJWK | None:
    """None for keys of other kinds and for other uses."""
    if not isinstance(value, dict) or value.get("kty") not in _KEY_TYPES or value.get("use", "sig") != "sig":
        return None
    try:
        return jwt.PyJWK({name: one for name, one in value.items() if name != "d"})
    except jwt.PyJWTError:
        return None
