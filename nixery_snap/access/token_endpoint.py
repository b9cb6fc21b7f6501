"""Where clients get tokens of ours (distribution, "Token Authentication Specification"), and how they are told so.

A token has the repositories that it was asked for; whether they are allowed is looked at when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from nixery_snap.access.identity import CATALOGUE, Identify, WrongCredentials
from nixery_snap.access.rules import Rules
from nixery_snap.access.tokens import Tokens
from nixery_snap.errors import InvalidFormat, InvalidName, Unauthenticated
from nixery_snap.oci.reference import check_name
from nixery_snap.web.forwarded import asked_scheme, client_address, plain_host

TOKEN_PATH: Final = "/token"  # noqa: S105 - a path
_CATALOGUE_PATH: Final = "/v2/_catalog"
_CATALOGUE_SCOPE: Final = "registry:catalog:*"
_MAX_SCOPES: Final = 64
_BASIC: Final = 'Basic realm="nixery-snap", charset="UTF-8"'


class Challenges:
    """Says how to log in: by a password, or for images with a token, which has to be asked for at `token_url`."""

    def __init__(self, tokens: Tokens | None, token_url: str, listen: str) -> None:
        self._tokens, self._token_url, self._listen = tokens, token_url, listen

    def __call__(self, request: web.Request) -> str:
        if self._tokens is None or not request.path.startswith("/v2"):
            return _BASIC
        realm = self._token_url
        if not realm:
            realm = f"{asked_scheme(request)}://{plain_host(request) or self._listen}{TOKEN_PATH}"
        name = request.match_info.get("name", "")
        try:
            scope = f',scope="repository:{check_name(name)}:pull"'
        except InvalidName:
            scope = f',scope="{_CATALOGUE_SCOPE}"' if request.path == _CATALOGUE_PATH else ""
        return f'Bearer realm="{realm}",service="{self._tokens.service}"{scope}'


class TokenEndpoint:
    """GET /token?service=…&scope=repository:NAME:pull."""

    def __init__(self, tokens: Tokens, rules: Rules, identify: Identify) -> None:
        self._tokens, self._rules, self._identify = tokens, rules, identify

    async def get(self, request: web.Request) -> web.Response:
        try:
            who = await self._identify(request.headers.getall("Authorization", []), client_address(request))
        except WrongCredentials:
            raise Unauthenticated(_BASIC) from None
        # One token must not be the way to the next, for ever.
        if who.repositories is not None or (who.is_anonymous and not self._rules.any(who)):
            raise Unauthenticated(_BASIC)
        service = request.query.get("service", self._tokens.service)
        if service != self._tokens.service:
            raise InvalidFormat("service", service, f"this is {self._tokens.service}")
        token, made = self._tokens.issue(who, _repositories(request.query.getall("scope", [])))
        value = {
            "token": token,
            "access_token": token,
            "expires_in": self._tokens.ttl_seconds,
            "issued_at": datetime.fromtimestamp(made, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return web.json_response(value, headers={"Cache-Control": "no-store"})


def _repositories(scopes: Iterable[str]) -> set[str]:
    """What else is asked for is not there to be had. Raises InvalidFormat, InvalidName."""
    wanted = [scope for text in scopes for scope in text.split()]
    if len(wanted) > _MAX_SCOPES:
        raise InvalidFormat("scope", f"{len(wanted)} scopes", f"at most {_MAX_SCOPES} at a time")
    names = set()
    for scope in wanted:
        if scope == _CATALOGUE_SCOPE:
            names.add(CATALOGUE)
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "repository" and {"pull", "*"} & set(actions.split(",")):
            names.add(check_name(name))
    return names
