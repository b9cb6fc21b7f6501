from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import bcrypt
import pytest
from aiohttp import web

from nixery_snap.access.authenticator import Authenticator
from nixery_snap.access.identity import ANONYMOUS, Identity, WrongCredentials
from nixery_snap.access.issuers import Issuer, IssuerOptions
from nixery_snap.access.passwords import Passwords
from nixery_snap.access.tokens import Tokens
from nixery_snap.errors import IssuerUnreachable, TooManyRequests
from nixery_snap.imaging.rate_limit import RateLimit
from tests.unit.access.jwts import Key, forgeries, payload, unsigned

SEED = bytes(range(32))


def basic(pair: str | bytes) -> str:
    content = pair if isinstance(pair, bytes) else pair.encode()
    return f"Basic {base64.b64encode(content).decode()}"


class Provider:
    """A real issuer: its configuration and its keys over HTTP."""

    def __init__(self) -> None:
        self.keys = [Key.generate("one", "RS256"), Key.generate("two"), Key.generate("three", "EdDSA")]
        self.url = ""
        self.claimed = None
        self.place = ""
        self.asked: list[str] = []
        self.fails = False

    async def configuration(self, request: web.Request) -> web.Response:
        self.asked.append("configuration")
        if self.fails:
            raise web.HTTPInternalServerError
        return web.json_response(
            {"issuer": self.claimed or self.url, "jwks_uri": self.place or f"{self.url}/keys"}
        )

    async def list(self, request: web.Request) -> web.Response:
        self.asked.append("keys")
        odd = [{"kty": "oct", "k": "AAAA", "kid": "secret"}, {"kty": "RSA"}, "x", {"kty": "EC", "use": "enc"}]
        return web.json_response({"keys": [*odd, *(key.jwk for key in self.keys)]})


class Now:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", made.configuration)
    app.router.add_get("/keys", made.list)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    made.url = f"http://{host}:{port}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def issuer(provider: Provider) -> AsyncIterator[Issuer]:
    options = IssuerOptions("corp", provider.url, "registry", ("RS256", "ES256", "EdDSA"), "sub")
    async with aiohttp.ClientSession() as session:
        yield Issuer(options, session, Now())


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(SEED, "key-1", "service", 300, {"groups"})


@pytest.fixture
def passwords(tmp_path: Path) -> Passwords:
    file = tmp_path / "htpasswd"
    file.write_text(f"alice:{bcrypt.hashpw(b's3cret:', bcrypt.gensalt(4)).decode()}\n")
    return Passwords(str(file))


@pytest.fixture
def authenticator(passwords: Passwords, tokens: Tokens, issuer: Issuer) -> Authenticator:
    return Authenticator(passwords, tokens, {issuer.options.url: issuer}, RateLimit(0, 60, ""))


async def refused(authenticator: Authenticator, *headers: str) -> bool:
    try:
        await authenticator.identify(headers, "client")
    except WrongCredentials:
        return True
    return False


async def test_passwords(authenticator: Authenticator) -> None:
    assert await authenticator.identify([], "client") == ANONYMOUS
    assert await authenticator.identify([basic(":")], "client") == ANONYMOUS
    assert await authenticator.identify([basic("alice:s3cret:")], "client") == Identity("alice")
    assert await authenticator.identify([basic("alice:s3cret:").replace("Basic", "bAsIc ")], "client")


@pytest.mark.parametrize(
    "headers",
    [
        [basic("alice:s3cret")],
        [basic("alice:")],
        [basic("alice")],
        [basic(":s3cret:")],
        [basic("bob:s3cret:")],
        [basic(b"\xff:s3cret:")],
        [basic("alice\0:s3cret:")],
        [basic("alice:s3cret:\0")],
        [basic("oidc:s3cret:")],
        [basic("alice:s3cret:") + "!"],
        [basic("alice:s3cret:"), basic("alice:s3cret:")],
        [basic(":"), basic("alice:s3cret:")],
        [basic("alice:s3cret:") + ", " + basic("alice:s3cret:")],
        ["Basic"],
        ["Basic " + "=" * 10000],
        [basic("alice:s3cret:").removeprefix("Basic ")],
        ["Bearer"],
        ["Bearer alice:s3cret:"],
        ["Digest username=alice"],
        [""],
        ["\udcff"],
    ],
)
async def test_what_is_refused(authenticator: Authenticator, headers: list[str]) -> None:
    assert await refused(authenticator, *headers)


async def test_tokens_of_ours(authenticator: Authenticator, tokens: Tokens) -> None:
    who = Identity("corp:bob", {"groups": ["dev"], "address": "x"})
    token, _ = tokens.issue(who, ["shell/git", "hello"])
    found = await authenticator.identify([f"Bearer {token}"], "client")
    assert found == Identity("corp:bob", {"groups": ["dev"]}, frozenset({"shell/git", "hello"}))
    anonymous, _ = tokens.issue(ANONYMOUS, [])
    assert await authenticator.identify([f"bearer {anonymous}"], "client") == Identity("", {}, frozenset())
    assert token != tokens.issue(who, ["shell/git", "hello"])[0]
    assert await refused(authenticator, basic(f"oidc:{token}")), "they are no way to others"


async def test_tokens_that_are_not_ours(authenticator: Authenticator, tokens: Tokens) -> None:
    moment = Now()
    old = Tokens(SEED, "key-1", "service", 300, set(), moment).issue(Identity("alice"), ["x"])[0]
    moment.now = 10**10
    future = Tokens(SEED, "key-1", "service", 300, set(), moment).issue(Identity("alice"), ["x"])[0]
    other_key = Tokens(bytes(32), "key-1", "service", 300, set()).issue(Identity("alice"), ["x"])[0]
    other_id = Tokens(SEED, "key-2", "service", 300, set()).issue(Identity("alice"), ["x"])[0]
    other_service = Tokens(SEED, "key-1", "other", 300, set()).issue(Identity("alice"), ["x"])[0]
    for token in (old, future, other_key, other_id, other_service):
        assert await refused(authenticator, f"Bearer {token}")
    key = Key("key-1", "EdDSA", tokens._key)
    claims = payload("service", aud="service", sub="alice", nbf=1, jti="x", access=[{"name": "x"}], claims={})
    assert await authenticator.identify([f"Bearer {key.sign(claims)}"], "client") == Identity(
        "alice", {}, frozenset({"x"})
    )
    for name, token in forgeries(key, claims).items():
        assert await refused(authenticator, f"Bearer {token}"), name
    for changed in (
        {"aud": ["service", "x"]},
        {"aud": "x"},
        {"aud": None},
        {"exp": None},
        {"jti": None},
        {"sub": 5},
    ):
        assert await refused(authenticator, f"Bearer {key.sign({**claims, **changed})}"), changed
        kept = {name: value for name, value in {**claims, **changed}.items() if value is not None}
        assert await refused(authenticator, f"Bearer {key.sign(kept)}"), changed


async def test_tokens_of_an_issuer(authenticator: Authenticator, provider: Provider) -> None:
    for key in provider.keys:
        token = key.sign(payload(provider.url, groups=["dev"]))
        for header in (f"Bearer {token}", basic(f"oidc:{token}")):
            found = await authenticator.identify([header], "client")
            assert (found.user, found.claims["groups"], found.repositories) == ("corp:bob", ["dev"], None)
        assert await refused(authenticator, basic(f"alice:{token}"))
    assert provider.asked == ["configuration", "keys"], "once"


async def test_tokens_that_are_not_the_issuers(authenticator: Authenticator, provider: Provider) -> None:
    for key in provider.keys:
        for name, token in forgeries(key, payload(provider.url)).items():
            assert await refused(authenticator, f"Bearer {token}"), name
            assert await refused(authenticator, basic(f"oidc:{token}")), name
    key = provider.keys[1]
    for claims in (
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://other.example"},
        {"iss": provider.url + "/"},
        {"iss": [provider.url]},
        {"iss": "service"},
        {"exp": 1},
        {"exp": None},
        {"exp": "never"},
        {"nbf": 10**10},
        {"sub": None},
        {"sub": ""},
        {"sub": "a\nb"},
        {"sub": "x" * 1000},
    ):
        assert await refused(authenticator, f"Bearer {key.sign(payload(provider.url, **claims))}"), claims
    assert await refused(authenticator, f"Bearer {key.sign(payload(provider.url), kid=None)}"), (
        "which of them?"
    )
    assert await refused(
        authenticator, f"Bearer {unsigned(payload(provider.url), kid='secret', alg='HS256')}"
    )


async def test_an_algorithm_that_is_not_allowed(provider: Provider, tokens: Tokens) -> None:
    options = IssuerOptions("corp", provider.url, "registry", ("ES256",), "sub")
    async with aiohttp.ClientSession() as session:
        issuer = Issuer(options, session)
        authenticator = Authenticator(None, tokens, {provider.url: issuer}, RateLimit(0, 60, ""))
        assert await refused(authenticator, f"Bearer {provider.keys[0].sign(payload(provider.url))}")
        assert not await refused(authenticator, f"Bearer {provider.keys[1].sign(payload(provider.url))}")


async def test_keys_are_rotated(authenticator: Authenticator, issuer: Issuer, provider: Provider) -> None:
    clock = issuer._clock
    assert isinstance(clock, Now)
    old, new = provider.keys[1], Key.generate("new")
    header = f"Bearer {old.sign(payload(provider.url))}"
    assert not await refused(authenticator, header)
    provider.keys = [new]
    fresh = f"Bearer {new.sign(payload(provider.url))}"
    assert await refused(authenticator, fresh), (
        "just asked: whoever makes up names of keys must not cause traffic"
    )
    clock.now += 31
    assert not await refused(authenticator, fresh)
    assert await refused(authenticator, header), "withdrawn"
    assert not await refused(authenticator, f"Bearer {new.sign(payload(provider.url), kid=None)}"), (
        "the only one"
    )
    # One that does not answer for a while is believed what it has said.
    provider.fails = True
    clock.now += 4000
    assert not await refused(authenticator, fresh)
    clock.now += 8000
    with pytest.raises(IssuerUnreachable, match="status 500"):
        await authenticator.identify([fresh], "client")
    provider.fails = False
    clock.now += 31
    assert not await refused(authenticator, fresh)


@pytest.mark.parametrize(
    ("field", "value"),
    [("claimed", "https://other.example"), ("place", "http://keys.example/"), ("place", "file:///etc/keys")],
)
async def test_a_configuration_that_is_not_to_be_believed(
    authenticator: Authenticator, provider: Provider, field: str, value: str
) -> None:
    setattr(provider, field, value)
    with pytest.raises(IssuerUnreachable):
        await authenticator.identify([f"Bearer {provider.keys[0].sign(payload(provider.url))}"], "client")


async def test_guesses_at_the_same_time_are_limited(passwords: Passwords) -> None:
    """They are all listened to, once: then the client waits as long as for as many one after the other."""
    clock = Now()
    authenticator = Authenticator(passwords, None, {}, RateLimit(3, 60, "enough", clock))
    guesses = (refused(authenticator, basic(f"alice:guess {number}")) for number in range(12))
    assert all(await asyncio.gather(*guesses))
    clock.now += 60 * 9 / 3
    with pytest.raises(TooManyRequests, match="enough"):
        await authenticator.identify([basic("alice:s3cret:")], "client")
    clock.now += 21
    assert await authenticator.identify([basic("alice:s3cret:")], "client") == Identity("alice")


async def test_failures_are_limited(passwords: Passwords) -> None:
    clock = Now()
    authenticator = Authenticator(passwords, None, {}, RateLimit(3, 60, "enough", clock))
    for _ in range(3):
        assert await refused(authenticator, basic("alice:wrong"))
    for header in (basic("alice:wrong"), basic("alice:s3cret:"), "nonsense"):
        with pytest.raises(TooManyRequests, match="enough") as raised:
            await authenticator.identify([header], "client")
        assert 0 < raised.value.retry_after_seconds <= 20
    assert await authenticator.identify([], "client") == ANONYMOUS
    assert await authenticator.identify([basic("alice:s3cret:")], "another") == Identity("alice")
    clock.now += 21
    assert await authenticator.identify([basic("alice:s3cret:")], "client") == Identity("alice")
