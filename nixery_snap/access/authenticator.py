"""From what a request shows to who asks: a user's password, a token of ours, or one of an issuer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final

import jwt

from nixery_snap.access.identity import ANONYMOUS, Identity, WrongCredentials
from nixery_snap.access.issuers import Issuer
from nixery_snap.access.passwords import Passwords
from nixery_snap.access.tokens import Tokens
from nixery_snap.imaging.rate_limit import RateLimit

# Programs that know passwords alone give an issuer's token as the password of this user.
TOKEN_USER: Final = "oidc"  # noqa: S105 - a name
_MAX_CHARACTERS: Final = 8192


class Authenticator:
    """`issuers` are by the URLs that their tokens name them by."""

    def __init__(
        self,
        passwords: Passwords | None,
        tokens: Tokens | None,
        issuers: Mapping[str, Issuer],
        failures: RateLimit,
    ) -> None:
        self._passwords = passwords
        self._tokens = tokens
        self._issuers = issuers
        self._failures = failures

    async def identify(self, headers: Sequence[str], client: str) -> Identity:
        """`headers` are the values of all Authorization headers; `client` is whom failures are counted for.

        Raises WrongCredentials, TooManyRequests, IssuerUnreachable.
        """
        if not headers:
            return ANONYMOUS
        # A client that fails too often is not listened to: otherwise it could go on with its guesses.
        self._failures.check(client)
        try:
            if len(headers) > 1 or len(headers[0]) > _MAX_CHARACTERS:
                raise WrongCredentials
            scheme, _, rest = headers[0].strip().partition(" ")
            match scheme.lower():
                case "basic":
                    return await self._basic(rest.strip())
                case "bearer":
                    return await self._token(rest.strip(), ours=True)
            raise WrongCredentials
        except WrongCredentials:
            self._failures.take(client)
            raise

    async def _basic(self, encoded: str) -> Identity:
        try:
            user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise WrongCredentials from None
        if not colon:
            raise WrongCredentials
        if not user and not password:  # what clients without credentials send when they are asked for them
            return ANONYMOUS
        if user == TOKEN_USER and self._issuers:
            return await self._token(password, ours=False)
        if self._passwords is None or not await self._passwords.verify(user, password):
            raise WrongCredentials
        return Identity(user)

    async def _token(self, token: str, *, ours: bool) -> Identity:
        """Who says that it is theirs decides by whose keys it is verified, and by no others."""
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
            name = claims.get("iss")
            if ours and self._tokens is not None and name == self._tokens.service:
                return self._tokens.verify(token, header)
            if isinstance(name, str) and name in self._issuers:
                return await self._issuers[name].verify(token, header)
        # The depth of its JSON is anybody's choice, too.
        except (jwt.PyJWTError, RecursionError, ValueError):
            raise WrongCredentials from None
        raise WrongCredentials
