"""Stands before every handler: what a route takes is said for each, and what is said for none is given to nobody."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from nixery_snap.access.identity import CATALOGUE, Identify, Identity, WrongCredentials
from nixery_snap.access.rules import Rules
from nixery_snap.errors import EXAMPLES, Forbidden, InvalidInput, PackagesUnavailable, Unauthenticated
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.web.forwarded import client_address


@dataclass(frozen=True, slots=True)
class Grant:
    """What one who asks may have."""

    who: Identity
    rules: Rules

    @property
    def anything(self) -> bool:
        return self.rules.any(self.who)

    def image(self, name: str, source: str, packages: Collection[AttributePath], tag: str | None) -> bool:
        """`name` is the repository's, for which a token of ours must have been asked for."""
        names = self.who.repositories
        return (names is None or name in names) and self.rules.image(self.who, source, packages, tag)

    @property
    def catalogue(self) -> bool:
        return self.anything and (self.who.repositories is None or CATALOGUE in self.who.repositories)

    def listed(self, source: str, packages: Collection[AttributePath]) -> bool:
        """Whether images of `packages` may be pulled, by some tag, with a token for them."""
        return self.rules.image(self.who, source, packages, None)

    def search(self, source: str, tag: str) -> bool:
        return self.who.repositories is None and self.rules.search(self.who, source, tag)

    def fetch(self, source: str) -> bool:
        return self.who.repositories is None and self.rules.fetch(self.who, source)


Need = Callable[[web.Request, Grant], bool]
"""What a route takes. Raises InvalidInput for a request that makes no sense."""

GRANT: Final = web.RequestKey("grant", Grant)


def everybody(_request: web.Request, _grant: Grant) -> bool:
    """For routes that tell nothing, or look at credentials themselves: they are not even asked who it is."""
    return True


def anything(_request: web.Request, grant: Grant) -> bool:
    """For what tells nothing, but is for those who have some right."""
    return grant.anything


def make_guard(
    rules: Rules,
    identify: Identify,
    needs: Mapping[str, Need],
    challenge: Callable[[web.Request], str],
) -> Middleware:
    """`needs` are by the canonical paths of routes; `challenge` makes a WWW-Authenticate header."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        need = anything if resource is None else needs.get(resource.canonical, nobody)
        if need is everybody:
            return await handler(request)
        try:
            who = await identify(request.headers.getall("Authorization", []), client_address(request))
        except WrongCredentials:
            raise Unauthenticated(challenge(request)) from None
        grant = Grant(who, rules)
        if not _takes(need, request, grant):
            if who.is_anonymous or who.repositories is not None:
                raise Unauthenticated(challenge(request))
            raise Forbidden
        request[GRANT] = grant
        structlog.contextvars.bind_contextvars(user=who.user)
        response = await handler(request)
        if not who.is_anonymous:
            _keep_private(response)
        return response

    return guard


def _keep_private(response: web.StreamResponse) -> None:
    """A cache on the way would give to others what is public (RFC 9111, section 3.5)."""
    if lasting := response.headers.get("Cache-Control"):
        response.headers["Cache-Control"] = lasting.replace("public", "private")


def nobody(_request: web.Request, _grant: Grant) -> bool:
    return False


def _takes(need: Need, request: web.Request, grant: Grant) -> bool:
    try:
        return need(request, grant)
    except InvalidInput:
        if not grant.anything:
            return False
        raise


def client_of(request: web.Request) -> str:
    """Whom work is counted for."""
    grant = request.get(GRANT)
    return f"user {grant.who.user}" if grant and grant.who.user else client_address(request)


def without_hints(
    error: PackagesUnavailable, may_have: Callable[[AttributePath], bool]
) -> PackagesUnavailable:
    """The same without suggestions of what one may not have, and without what there is in sets."""
    return PackagesUnavailable(
        tuple(
            replace(
                problem,
                message=problem.message.partition(EXAMPLES)[0],
                suggestions=tuple(
                    hint for hint in problem.suggestions if may_have(AttributePath.parse(hint))
                ),
            )
            for problem in error.problems
        )
    )
