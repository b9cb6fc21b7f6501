"""Who gets in, wired from the settings: access control, and what warns of its absence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware

from nixery_snap.access.authenticator import Authenticator
from nixery_snap.access.guard import Grant, Need, everybody, make_guard
from nixery_snap.access.issuers import Issuer, IssuerOptions
from nixery_snap.access.passwords import Passwords
from nixery_snap.access.rules import Action, PackagePatterns, Patterns, Rule, Rules
from nixery_snap.access.token_endpoint import TOKEN_PATH, Challenges, TokenEndpoint
from nixery_snap.access.tokens import Tokens
from nixery_snap.imaging.rate_limit import RateLimit
from nixery_snap.nix_stores.signing_key import load_signing_key
from nixery_snap.registry.rights import registry_needs
from nixery_snap.settings import Settings
from nixery_snap.settings.sections import RuleSettings


@dataclass(slots=True)
class Entrance:
    """`guard` is to be given to the application, which is then completed by `attach`."""

    guard: Middleware
    needs: dict[str, Need]
    endpoint: TokenEndpoint | None

    def attach(self, app: web.Application, caches: Mapping[str, web.Application]) -> None:
        """`caches`: mounted binary caches by a source whose rights are theirs."""
        if self.endpoint is not None:
            app.router.add_get(TOKEN_PATH, self.endpoint.get, name="token")
            self.needs[TOKEN_PATH] = everybody
        for source, cache in caches.items():
            need = _fetch(source)
            # Whatever it has: no route of it can be forgotten.
            self.needs |= {resource.canonical: need for resource in cache.router.resources()}


def _fetch(source: str) -> Need:
    def need(_request: web.Request, grant: Grant) -> bool:
        return grant.fetch(source)

    return need


@asynccontextmanager
async def open_entrance(settings: Settings, listen: str) -> AsyncIterator[Entrance]:
    """`listen` is the address that the server has. Raises SettingsError."""
    auth = settings.auth
    rules = Rules(map(_rule, auth.rules or [RuleSettings(users=("*",))]))
    passwords = Passwords(auth.htpasswd_file) if auth.htpasswd_file else None
    tokens = None
    if auth.tokens:
        key = load_signing_key(
            settings.token_key_path, create=not auth.token_key_file, setting="auth.token_key_file"
        )
        tokens = Tokens(key.seed, str(key.public_key), auth.service, auth.token_ttl, rules.claims)
    failures = RateLimit(
        settings.limits.client_failures, 60, "too many logins have failed (setting limits.client_failures)"
    )
    try:
        async with aiohttp.ClientSession() as session:
            issuers = {
                one.url: Issuer(
                    IssuerOptions(name, one.url, one.audience, one.algorithms, one.user_claim), session
                )
                for name, one in auth.issuers.items()
            }
            identify = Authenticator(passwords, tokens, issuers, failures).identify
            needs = dict(registry_needs(asks=auth.tokens or auth.knows_users))
            challenges = Challenges(tokens, auth.token_url, listen)
            guard = make_guard(rules, identify, needs, challenges)
            yield Entrance(guard, needs, TokenEndpoint(tokens, rules, identify) if tokens else None)
    finally:
        if passwords is not None:
            passwords.close()


def _rule(rule: RuleSettings) -> Rule:
    return Rule(
        rule.effect == "allow",
        Patterns(rule.users),
        rule.claims,
        frozenset(map(Action, rule.actions)),
        Patterns(rule.sources),
        PackagePatterns(rule.packages),
        Patterns(rule.tags),
    )
