"""What somebody without rights gets: nothing, whatever he tries."""

import asyncio
import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from aiohttp import web

from nixery_snap.entrance import open_entrance
from nixery_snap.service import open_service
from nixery_snap.settings import Settings
from nixery_snap.site import make_site
from tests.integration.access import PASSWORD, SECRET, USER, Guarded, basic, guarded, password_file
from tests.integration.caches import hash_part
from tests.integration.need import need
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.processes import Daemon, free_port, output_of, run, wait_until
from tests.integration.server import OCI_MANIFEST, PROGRAM, Registry, Response, Start, digest_of
from tests.integration.sources_git import Repository
from tests.support.certificates import self_signed
from tests.support.servers import Server
from tests.unit.access.jwts import Key, forgeries, payload

HASH = "a" * 32
DIGEST = f"sha256:{'a' * 64}"
PRIVATE = f"nix-snapshotter/internal/{SECRET}"
REFUSALS = {
    401: ("UNAUTHORIZED", "this takes credentials that are allowed to do it"),
    403: ("DENIED", "these credentials are not allowed to do this"),
}
# What HTTP itself refuses, or the grammar of names before anything is looked up, with the same words for everybody.
MALFORMED = re.compile(
    r"names, tags and digests hold no escaped characters"
    r"|this is not a valid HTTP request"
    r"|a line of the request's head is longer than \d+ bytes"
    r"|there is nothing at this path; images are below /v2/"
    r"|this registry makes its images itself: it is read-only"
    r"|invalid image name '.*': (use lower-case package names separated by '/', .*|it is \d+ characters long, .*)"
)


@pytest.fixture(scope="module")
def world(scratch: Path, prepared_store: ChrootStore) -> Iterator[Guarded]:
    with guarded(scratch / "access", prepared_store, tokens=True) as running:
        yield running


@pytest.fixture(scope="module")
def private(world: Guarded) -> dict[str, str]:
    """What somebody with the right can see of the private package: its manifest's digest, a blob's, a store path."""
    answer = world.get(f"/v2/{PRIVATE}/manifests/latest", Accept=OCI_MANIFEST)
    assert answer.status == 200, answer
    manifest = answer.json()
    config = manifest["config"]["digest"]
    assert world.get(f"/v2/{PRIVATE}/blobs/{config}").status == 200
    classic = world.get(f"/v2/internal/{SECRET}/manifests/latest", Accept=OCI_MANIFEST)
    layers = [layer["digest"] for layer in classic.json()["layers"]]
    paths = re.findall(rf"/nix/store/\w{{32}}-{SECRET}", answer.body.decode())
    path = hash_part(paths[0])
    narinfo = world.get(f"/nix-cache-of/internal/{path}.narinfo")
    assert narinfo.status == 200, narinfo
    nar = re.search(r"^URL: (.+)$", narinfo.body.decode(), re.MULTILINE)
    assert nar
    assert world.get(f"/nix-cache-of/internal/{nar[1]}").status == 200
    return {
        "manifest": digest_of(answer.body),
        "config": config,
        "layer": layers[-1],
        "path": path,
        "nar": nar[1],
    }


def is_refused(answer: Response, *statuses: int) -> bool:
    """Whether it says nothing but that."""
    assert answer.status in (statuses or REFUSALS), answer
    code, message = REFUSALS[answer.status]
    assert answer.json() == {"errors": [{"code": code, "detail": None, "message": message}]}
    return True


def raw(port: int, sent: bytes, *, after: bytes = b"") -> bytes:
    """All that comes back until the server closes, or says nothing more for a while.

    `after`: a request for /healthz that comes before, on the same connection.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        if after:
            connection.sendall(after)
            before = b""
            while not before.endswith(b"\r\n\r\nok\n"):
                piece = connection.recv(65536)
                assert piece, before
                before += piece
        connection.sendall(sent)
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
                connection.settimeout(0.5)
        except (TimeoutError, ConnectionResetError):
            pass
    assert received
    return received


def gives_nothing(answers: bytes, secrets: dict[str, str]) -> bool:
    """Whether these bytes, of any number of answers, are refusals alone and tell nothing of what is private."""
    text = answers.decode("latin1")
    assert not re.search(r"HTTP/1\.[01] 2", text), text
    for secret in (*secrets.values(), "tomatoes", "schemaVersion"):
        assert secret not in text
    for message in re.findall(r'"message":"([^"]*)"', text):
        assert message in {words for _, words in REFUSALS.values()} or MALFORMED.fullmatch(message), message
    return True


# --- every route ---------------------------------------------------------------------------------------


async def test_every_route_takes_a_right(directory: Path, prepared_store: ChrootStore) -> None:
    """Of the application as it is served; one that is added without a right is closed, which this test shows too."""
    settings = Settings.model_validate(
        {
            "source": f"path:{EXAMPLES}",
            "storage": f"file://{directory}/storage",
            "cache_directory": f"{directory}/cache",
            "nix": {"store": str(prepared_store.root)},
            "substituters": [],
            "sources": {"internal": {"spec": f"path:{EXAMPLES}", "prefix": "internal", "separate": True}},
            "auth": {"htpasswd_file": str(password_file(directory / "htpasswd")), "tokens": True},
        }
    )
    async with open_service(settings) as service, open_entrance(settings, "127.0.0.1:1") as entrance:
        site = make_site(settings, service, entrance)

        async def forgotten(request: web.Request) -> web.Response:
            return web.Response(text=SECRET)

        site.router.add_get("/forgotten/{what}", forgotten)
        runner = web.AppRunner(site)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        paths = set()
        for resource in site.router.resources():
            inside = getattr(resource, "_app", None)
            for one in inside.router.resources() if inside else [resource]:
                paths.add(one.canonical)
        assert len(paths) > 20
        assert "/nix-cache-of/internal/nar/{file}" in paths
        opened = {}
        for path in paths:
            values = {
                "name": "hello",
                "reference": "latest",
                "digest": DIGEST,
                "hash_part": HASH,
                "what": "x",
                "slash": "/",
                "upload": "x",
            }
            values |= {"file": f"{HASH}.nar", "derivation": f"{HASH}-x.drv"}
            target = path.format_map(values)
            for method in ("GET", "HEAD", "POST", "DELETE"):
                answer = await asyncio.to_thread(
                    Registry(directory, directory, port=port).request, method, target
                )
                if path in {"/healthz", "/readyz"} and method in {"GET", "HEAD"}:
                    opened[path] = answer.status
                elif method != "HEAD":
                    assert is_refused(answer, 401), path
                else:
                    assert (answer.status, answer.body) == (401, b""), path
            stale = await asyncio.to_thread(
                Registry(directory, directory, port=port).request, "GET", target, {"Authorization": basic()}
            )
            if path == "/forgotten/{what}":
                assert is_refused(stale, 403), "not even for those who may have everything"
            else:
                assert stale.status not in {401, 403}, path
        assert opened == {"/healthz": 200, "/readyz": 200}
        await runner.cleanup()


# --- strangers, and those with some rights ---------------------------------------------------------------


def test_what_strangers_may_have(world: Guarded) -> None:
    for name in ("hello", "classic/which", "nix-snapshotter/hello/which"):
        manifest = world.get(f"/v2/{name}/manifests/latest", None, Accept=OCI_MANIFEST)
        assert manifest.status == 200
        assert world.get(f"/v2/{name}/manifests/{digest_of(manifest.body)}", None).status == 200
        for blob in [manifest.json()["config"], *manifest.json()["layers"]]:
            assert world.get(f"/v2/{name}/blobs/{blob['digest']}", None).status == 200
    assert world.get("/v2/hello/tags/list", None).json()["tags"] == ["latest"]
    assert world.get("/", None).status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/v2/",
        "/v2",
        "/v2/curl/manifests/latest",
        "/v2/shell/hello/manifests/latest",
        "/v2/hello/curl/manifests/latest",
        "/v2/hello.out/manifests/latest",
        "/v2/hello/manifests/v1",
        "/v2/internal/hello/manifests/latest",
        "/v2/internal/hello/tags/list",
        f"/v2/internal/hello/blobs/{DIGEST}",
        "/v2/nosuchpackage/manifests/latest",
        "/v2/internal/nosuchpackage/manifests/latest",
        "/v2/curl/tags/list",
        f"/v2/curl/manifests/{DIGEST}",
        f"/v2/curl/blobs/{DIGEST}",
        "/api/v1/packages?q=hello",
        "/api/v1/packages?q=hello&source=internal",
        "/api/v1/packages?q=hello&source=nosuch",
        "/nix-cache/nix-cache-info",
        "/nix-cache/public-key",
        f"/nix-cache/{HASH}.narinfo",
        f"/nix-cache/nar/{HASH}.nar",
        "/nix-cache-of/internal/nix-cache-info",
    ],
)
def test_what_strangers_may_not_have(world: Guarded, target: str) -> None:
    assert is_refused(world.get(target, None), 401)
    head = world.registry.head(target)
    assert (head.status, head.body) == (401, b"")
    challenge = head.headers["www-authenticate"]
    assert challenge.startswith("Bearer realm=" if target.startswith("/v2") else "Basic realm=")


def test_the_private_source_is_for_those_with_the_right(world: Guarded, private: dict[str, str]) -> None:
    """Digests and hashes that somebody has shown are of no use to others, under no name."""
    bob = basic("bob", "bob")
    assert world.get("/v2/hello/manifests/latest", bob).status == 200
    for name in (f"internal/{SECRET}", PRIVATE, "internal/hello"):
        for what in (
            "manifests/latest",
            f"manifests/{private['manifest']}",
            f"blobs/{private['config']}",
            "tags/list",
        ):
            assert is_refused(world.get(f"/v2/{name}/{what}", bob), 403)
            assert is_refused(world.get(f"/v2/{name}/{what}", None), 401)
    assert is_refused(world.get("/v2/hello/manifests/latest", bob, Host="internal.example"), 403)
    assert is_refused(world.get("/v2/hello/manifests/latest", None, Host="INTERNAL.example:80"), 401)
    for file in (f"{private['path']}.narinfo", f"{private['path']}.ls", private["nar"], "nix-cache-info"):
        assert is_refused(world.get(f"/nix-cache-of/internal/{file}", bob), 403)
        assert is_refused(world.get(f"/nix-cache-of/internal/{file}", None), 401)
    assert is_refused(world.get("/api/v1/packages?q=x&source=internal", bob), 403)


def test_nor_under_a_name_that_they_may_use(world: Guarded, private: dict[str, str]) -> None:
    for who in (basic("bob", "bob"), basic(), None):
        for digest in (private["manifest"], private["config"], private["layer"]):
            known = world.get(f"/v2/hello/blobs/{digest}", who)
            unknown = world.get(f"/v2/hello/blobs/{DIGEST}", who)
            assert known.status == unknown.status == 404
            assert known.body == unknown.body.replace(DIGEST.encode(), digest.encode())
            assert world.get(f"/v2/hello/manifests/{digest}", who).status == 404
    for who in (basic("bob", "bob"), basic()):
        for file in (f"{private['path']}.narinfo", f"{private['path']}.ls", private["nar"]):
            assert world.get(f"/nix-cache/{file}", who).status == 404
        answer = world.get(f"/v2/{SECRET}/manifests/latest", who)
        assert answer.status == 404
        assert not answer.error["detail"][0]["suggestions"]
    # Near to it, and not told of it.
    answer = world.get(f"/v2/{SECRET[:-1]}/manifests/latest")
    assert "did you mean" not in answer.error["message"]
    near = world.get(f"/v2/internal/{SECRET[:-1]}/manifests/latest")
    assert f"did you mean {SECRET}" in near.error["message"]
    assert (
        world.get("/api/v1/packages?q=x&source=nosuch").error["message"]
        == "there is no package source 'nosuch'"
    )


def test_the_catalogue_has_what_one_may_have(world: Guarded, private: dict[str, str]) -> None:
    """On every page of it, and in the links between them."""
    assert world.get("/v2/which/manifests/latest").status == 200
    assert world.get("/v2/curl/manifests/latest").status == 200
    mine = world.get("/v2/_catalog").json()["repositories"]
    assert {PRIVATE, f"internal/{SECRET}", "which", "curl"} <= set(mine)
    for who, has, lacks in ((basic("bob", "bob"), "curl", "internal"), (None, "which", "curl")):
        target, told = "/v2/_catalog?n=1", ""
        while target:
            page = world.get(target, who)
            assert page.status == 200
            told += f"{page.headers} {page.body.decode()}\n"
            link = re.match("<(.*)>", page.headers.get("link", ""))
            target = link[1] if link else ""
        assert f'"{has}"' in told
        assert lacks not in told
        assert SECRET not in told


def test_refusals_come_before_any_work(world: Guarded, private: dict[str, str]) -> None:
    """What there is makes no difference to how long they take: nothing is evaluated, pinned or looked up."""

    def work() -> list[str]:
        return [line["event"] for line in world.registry.log_lines() if line["event"] != "request"]

    before = work()
    for name in (f"internal/{SECRET}", f"internal/{SECRET}/hello", "internal/nosuch", "internal/which"):
        for what in ("manifests/latest", f"manifests/{private['manifest']}", f"blobs/{DIGEST}", "tags/list"):
            for who in (basic("bob", "bob"), None):
                assert is_refused(world.get(f"/v2/{name}/{what}", who))
    assert work() == before


def test_what_is_suggested_is_allowed(world: Guarded) -> None:
    """Strangers may ask for nothing that is not a package, so only somebody with some rights is told."""
    answer = world.get("/v2/helo/manifests/latest", basic("bob", "bob"))
    assert "did you mean hello" in answer.error["message"]
    assert is_refused(world.get("/v2/helo/manifests/latest", None), 401)
    answer = world.get("/v2/python3packages/manifests/latest", basic("bob", "bob"))
    assert answer.error["message"].endswith("name one of its attributes instead, as python3packages.NAME")


def test_caches_on_the_way_keep_nothing_for_others(world: Guarded, private: dict[str, str]) -> None:
    for target in (
        f"/v2/{PRIVATE}/manifests/{private['manifest']}",
        f"/v2/{PRIVATE}/blobs/{private['config']}",
        f"/v2/internal/{SECRET}/blobs/{private['layer']}",
        f"/nix-cache-of/internal/{private['path']}.narinfo",
        f"/nix-cache-of/internal/{private['nar']}",
        "/nix-cache/nix-cache-info",
    ):
        first = world.get(target)
        again = world.get(target, **{"If-None-Match": first.headers["etag"]})
        assert (first.status, again.status) == (200, 304)
        for answer in (first, again):
            assert re.match(r"private, max-age=\d+", answer.headers["cache-control"]), target
    hello = world.get("/v2/hello/manifests/latest", None, Accept=OCI_MANIFEST)
    blob = world.get(f"/v2/hello/blobs/{hello.json()['config']['digest']}", None)
    assert blob.headers["cache-control"].startswith("public,"), "strangers may have it"


# --- attacks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [
        basic(USER, "wrong"),
        basic(USER, ""),
        basic(USER, PASSWORD + " "),
        basic(USER, PASSWORD.upper()),
        basic("ALICE", PASSWORD),
        basic("alice\0", PASSWORD),
        basic("nobody", PASSWORD),
        basic("", PASSWORD),
        basic("anonymous", ""),
        basic("*", "*"),
        basic("oidc", "x.y.z"),
        basic().replace("Basic ", ""),
        basic().replace("Basic", "Bearer"),
        basic()[:-4],
        "Basic",
        "Bearer",
        "Bearer null",
        "Negotiate x",
    ],
)
def test_wrong_credentials(world: Guarded, authorization: str) -> None:
    """Even where no credentials are needed."""
    for target in ("/v2/", "/v2/hello/manifests/latest", f"/v2/{PRIVATE}/manifests/latest", "/token", "/"):
        assert is_refused(world.get(target, authorization), 401)


def test_unknown_users_take_as_long_as_known_ones(world: Guarded) -> None:
    """The same bytes come back; that a hash is computed for both is shown where that can be counted."""
    known, unknown = (world.get("/v2/", basic(user, "wrong")) for user in (USER, "nobody"))
    vary = {"date", "x-request-id"}
    assert known.body == unknown.body
    assert {k: v for k, v in known.headers.items() if k not in vary} == {
        k: v for k, v in unknown.headers.items() if k not in vary
    }


def token(world: Guarded, scope: str, authorization: str | None = "") -> str:
    answer = world.get(f"/token?service=nixery-snap&scope={scope}", authorization)
    assert answer.status == 200, answer
    found: str = answer.json()["token"]
    return found


def test_tokens(world: Guarded) -> None:
    mine = f"Bearer {token(world, f'repository:{PRIVATE}:pull')}"
    assert world.get(f"/v2/{PRIVATE}/manifests/latest", mine).status == 200
    assert world.get("/v2/", mine).status == 200
    # For nothing else: no other name, no other part of the server, and no further token.
    for target in (
        f"/v2/internal/{SECRET}/manifests/latest",
        "/v2/curl/manifests/latest",
        "/nix-cache/nix-cache-info",
    ):
        assert is_refused(world.get(target, mine), 401)
    for target in ("/nix-cache-of/internal/nix-cache-info", "/api/v1/packages?q=x", "/token"):
        assert is_refused(world.get(target, mine), 401)
    # A stranger's is good for what strangers may have; so is bob's.
    for who, good in ((None, "hello"), (basic("bob", "bob"), "curl")):
        scopes = f"repository:{PRIVATE}:pull%20repository:{good}:pull,push&scope=repository:which:*"
        theirs = f"Bearer {token(world, scopes, who)}"
        assert world.get(f"/v2/{good}/manifests/latest", theirs).status == 200
        assert world.get("/v2/which/manifests/latest", theirs).status == 200
        assert world.get("/v2/", theirs).status == 200
        assert is_refused(world.get(f"/v2/{PRIVATE}/manifests/latest", theirs))
    answer = world.get("/token?service=nixery-snap").json()
    assert (answer["expires_in"], answer["token"]) == (60, answer["access_token"])
    assert world.get("/token?service=another").status == 400
    assert world.get("/token?scope=" + "%20".join(["repository:x:pull"] * 65)).status == 400
    assert world.get("/token?scope=repository:A%22:pull").status == 400


def test_catalogue(world: Guarded, private: dict[str, str]) -> None:
    """Everybody is told of what he may have, by whatever he shows."""
    assert private
    for name in ("hello", "hello/which", "curl"):
        assert world.get(f"/v2/{name}/manifests/latest").status == 200

    def names(authorization: str | None) -> set[str]:
        answer = world.get("/v2/_catalog", authorization)
        assert answer.status == 200, answer
        return set(answer.json()["repositories"])

    everything, bobs = names(""), names(basic("bob", "bob"))
    assert {PRIVATE, f"internal/{SECRET}", "curl", "hello"} <= everything
    assert {"curl", "hello"} <= bobs
    assert bobs == {name for name in everything if SECRET not in name}
    assert {"hello", "hello/which"} <= names(None)
    assert not any("curl" in name or SECRET in name for name in names(None))
    assert names(f"Bearer {token(world, 'registry:catalog:*')}") == everything
    assert names(f"Bearer {token(world, 'registry:catalog:*', basic('bob', 'bob'))}") == bobs
    for scope in ("repository:hello:pull", "registry:catalog:", "repository:_catalog:push"):
        answer = world.get("/v2/_catalog", f"Bearer {token(world, scope)}")
        assert is_refused(answer, 401)
        assert answer.headers["www-authenticate"].endswith(',scope="registry:catalog:*"')
    page = world.get("/v2/_catalog?n=1", basic("bob", "bob"))
    assert page.json()["repositories"] == [min(bobs)]
    assert page.headers["link"].startswith("</v2/_catalog?n=1&last=")


def test_forged_tokens(world: Guarded) -> None:
    """By whoever knows all that a token tells, and the public key: it is in the token's head."""
    mine = token(world, f"repository:{PRIVATE}:pull")
    head, body, signature = mine.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    key_id = json.loads(base64.urlsafe_b64decode(head + "=="))["kid"]
    assert claims["sub"] == USER
    forged = forgeries(Key.generate(key_id, "EdDSA"), claims)
    forged |= {
        "by another key of that name": Key.generate(key_id, "EdDSA").sign(claims),
        "another body": f"{head}.{forged['none'].split('.')[1][:-4]}AAAA.{signature}",
        "another's token": Key.generate(key_id).sign(payload("nixery-snap", **claims)),
    }
    for name, one in forged.items():
        assert is_refused(world.get(f"/v2/{PRIVATE}/manifests/latest", f"Bearer {one}"), 401), name


NAMES = [
    "internal/../internal/secretspice",
    "hello/../internal/secretspice",
    "hello/./secretspice",
    "hello//internal/secretspice",
    "/internal/secretspice",
    "internal%2fsecretspice",
    "internal%2Fsecretspice",
    "hello%2f..%2finternal%2fsecretspice",
    "hello/%2e%2e/internal/secretspice",
    "internal/secretspice%00",
    "internal%00/secretspice",
    "hello%00/../internal/secretspice",
    "INTERNAL/secretspice",
    "Internal/Secretspice",
    "internal/secret\u200bsauce",
    "internal/\u0455ecretspice",
    "\uff49nternal/secretspice",
    "%69nternal/secretspice",
    "internal;x/secretspice",
    "internal\\secretspice",
    "internal/secretspice?x=/v2/hello",
    "classic/internal/secretspice",
    "hello/blobs/../../internal/secretspice",
    "hello/manifests/latest/../../../internal/secretspice",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_in_disguise(world: Guarded, private: dict[str, str], name: str) -> None:
    for prefix in ("/v2/", "//v2/", "/V2/", "/x/../v2/", "/%76%32/", "/v2/hello/blobs/../../"):
        for rest in ("/manifests/latest", f"/manifests/{private['manifest']}", f"/blobs/{private['config']}"):
            request = f"GET {prefix}{name}{rest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            assert gives_nothing(raw(world.registry.port, request), {"x": "tomatoes"})


def smuggled(private: dict[str, str]) -> dict[str, bytes]:
    """Requests that two readers could understand in two ways; none has the right to what it asks for."""
    path = f"/v2/{PRIVATE}/manifests/latest"
    sauce = f"/v2/{SECRET}/manifests/latest"
    inner = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"
    wrong = f"Authorization: {basic(USER, 'wrong')}\r\n"
    empty = f"Authorization: {basic('', '')}\r\n"
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\n"
    return {
        "two headers": f"{head}{wrong}{empty}\r\n".encode(),
        "two right ones": f"{head}Authorization: {basic('bob', 'bob')}\r\n{empty}\r\n".encode(),
        "a folded header": f"{head}Authorization: Basic\r\n {basic('bob', 'bob')[6:]}\r\n\r\n".encode(),
        "an underscore": f"{head}Proxy_Authorization: x\r\nX-User: alice\r\nRemote-User: alice\r\n\r\n".encode(),
        "forwarded": f"{head}X-Forwarded-User: alice\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n".encode(),
        "another URL": f"{head}X-Original-URL: /healthz\r\nX-Rewrite-URL: /healthz\r\n\r\n".encode(),
        "another method": f"{head}X-HTTP-Method-Override: HEAD\r\n\r\n".encode(),
        "CL and TE": (
            f"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: {len(inner) + 5}\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
        ).encode(),
        "two lengths": f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n{inner}".encode(),
        "an odd TE": (
            f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{inner}"
        ).encode(),
        "absolute form": f"GET http://x{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "absolute form, another host": f"GET http://internal.example{sauce} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "authority in the target": f"GET http://alice:x@x{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "a host with a path": f"GET {sauce} HTTP/1.1\r\nHost: internal.example/x\r\n\r\n".encode(),
        "two hosts": f"GET {sauce} HTTP/1.1\r\nHost: x\r\nHost: internal.example\r\n\r\n".encode(),
        "no host": f"GET {path} HTTP/1.0\r\n\r\n".encode(),
        "line feeds": f"GET {path} HTTP/1.1\nHost: x\n\n".encode(),
        "a carriage return": f"GET {path} HTTP/1.1\r\nHost: x\rAuthorization: {basic()[:9]}\r\n\r\n".encode(),
        "a long path": f"GET /v2/{'a/' * 5000}{SECRET}/manifests/latest HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "an upgrade": f"{head}Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n".encode(),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "connect": b"CONNECT internal.example:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        "star": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        "by digest": f"GET /v2/{PRIVATE}/blobs/{private['config']} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    }


def test_smuggled_requests(world: Guarded, private: dict[str, str]) -> None:
    good = f"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: {basic()}\r\n\r\n".encode()
    for name, request in smuggled(private).items():
        kept = {key: value for key, value in private.items() if value.encode() not in request}
        closing = request.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n")
        for after in (b"", good):
            assert gives_nothing(raw(world.registry.port, closing, after=after), kept), name


def test_rights_are_asked_for_each_time(world: Guarded) -> None:
    """What one may have is not remembered for the next, not even for the same bytes on the same connection."""
    path = f"/v2/{PRIVATE}/manifests/latest"
    connection = http.client.HTTPConnection("127.0.0.1", world.registry.port, timeout=280)
    for headers, status in (
        ({"Authorization": basic()}, 200),
        ({}, 401),
        ({"Authorization": basic()}, 200),
        ({"Authorization": basic("bob", "bob")}, 403),
        ({"Authorization": basic(USER, "wrong")}, 401),
        ({"Authorization": basic()}, 200),
    ):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert (answer.read() and answer.status) == status
    connection.close()


def test_a_user_who_is_removed(world: Guarded) -> None:
    """At once, although he was just let in, with the same bytes on the same connection."""
    file = world.registry.state.parent / "htpasswd"
    text = file.read_text()
    connection = http.client.HTTPConnection("127.0.0.1", world.registry.port, timeout=280)

    def asked() -> int:
        connection.request("GET", "/v2/curl/manifests/latest", headers={"Authorization": basic("bob", "bob")})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    with contextlib.closing(connection):
        assert [asked() for _ in range(3)] == [200] * 3
        file.write_text(
            "".join(line for line in text.splitlines(keepends=True) if not line.startswith("bob"))
        )
        assert asked() == 401
        file.write_text(text)
        assert asked() == 200


def test_secrets_are_in_no_log(world: Guarded, private: dict[str, str]) -> None:
    mine = token(world, f"repository:{PRIVATE}:pull")
    world.get(f"/v2/{PRIVATE}/manifests/latest", f"Bearer {mine}")
    world.get("/v2/", basic(USER, "a-wrong-password"))
    text = world.registry.log.read_text()
    for secret in (
        PASSWORD,
        "a-wrong-password",
        basic()[6:],
        mine,
        mine.split(".")[1],
        "$2b$",
        "Authorization",
    ):
        assert secret not in text
    assert '"user": "alice"' in text


# --- servers of their own ---------------------------------------------------------------------------------


def test_limits(directory: Path, prepared_store: ChrootStore, start: Start) -> None:
    file = password_file(directory / "htpasswd")
    config = f"""
trusted_proxies = ["127.0.0.0/8"]
[auth]
htpasswd_file = "{file}"
[[auth.rules]]
users = ["*", "anonymous"]
[limits]
client_failures = 3
client_new_images = 4
"""
    registry = start(Registry(directory / "state", prepared_store.root, config=config))

    def get(name: str, client: str, **headers: str) -> Response:
        return registry.get(f"/v2/{name}/manifests/latest", X_Forwarded_For=client, **headers)

    for _ in range(3):
        assert get("hello", "192.0.2.1", Authorization=basic(USER, "guess")).status == 401
    for authorization in (basic(USER, "guess"), basic()):
        answer = get("hello", "192.0.2.1", Authorization=authorization)
        assert (answer.status, answer.error["code"]) == (429, "TOOMANYREQUESTS")
        assert 0 < int(answer.headers["retry-after"]) <= 20
    assert get("hello", "192.0.2.1").status == 200, "who shows no credentials is no guesser"
    assert get("hello", "192.0.2.2", Authorization=basic()).status == 200

    statuses = [
        get(name, "192.0.2.3").status for name in ("which", "curl", "hello/which", "hello/curl", "which/curl")
    ]
    assert statuses == [200] * 4 + [429]
    answer = get("which/curl", "192.0.2.3")
    assert "limits.client_new_images" in answer.error["message"]
    assert int(answer.headers["retry-after"]) > 60
    assert get("which", "192.0.2.3").status == 200, "it is no new one"
    assert get("which/curl", "192.0.2.4").status == 200


def test_rules_without_users(directory: Path, prepared_store: ChrootStore, start: Start) -> None:
    """Nobody can log in, and everybody may have some things."""
    config = """
[[auth.rules]]
users = ["anonymous"]
packages = ["*"]
[[auth.rules]]
effect = "deny"
users = ["anonymous"]
packages = ["curl"]
"""
    registry = start(Registry(directory / "state", prepared_store.root, config=config))
    assert registry.get("/v2/").status == 200
    assert registry.pull("hello")
    for name in ("curl", "CURL".lower(), "curl.out", "hello/curl", "python3packages.requests"):
        assert is_refused(registry.get(f"/v2/{name}/manifests/latest"), 401)
    assert registry.get("/nix-cache/nix-cache-info").status == 200
    assert is_refused(registry.get("/api/v1/packages?q=x"), 401)
    suggested = registry.get("/v2/curll/manifests/latest")
    assert (suggested.status, suggested.error["detail"][0]["suggestions"]) == (404, [])


def test_tags_that_may_be_asked_for(directory: Path, prepared_store: ChrootStore, start: Start) -> None:
    repository = Repository.create(directory / "repository")
    repository.commit({"default.nix": f"import {EXAMPLES}"})
    for tag in ("v1", "v2", "secret"):
        repository.git("tag", tag)
    config = f"""
[sources.repository]
spec = "{repository.url}"
prefix = "repository"
restricted = false
[[auth.rules]]
users = ["anonymous"]
tags = ["v*"]
[[auth.rules]]
users = ["anonymous"]
effect = "deny"
tags = ["v2"]
"""
    registry = start(Registry(directory / "state", prepared_store.root, config=config))
    assert registry.get("/v2/repository/hello/tags/list").json()["tags"] == ["v1"]
    manifest = registry.manifest("repository/hello", "v1")
    assert manifest.status == 200
    assert registry.get(f"/v2/repository/hello/manifests/{digest_of(manifest.body)}").status == 200
    for tag in ("v2", "secret", "latest", repository.head):
        assert is_refused(registry.manifest("repository/hello", tag), 401)


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ("", "no-authentication"),
        ("[[auth.rules]]\nusers = ['anonymous']", "no-authentication"),
        ("[auth]\nhtpasswd_file = '@'", "no-tls"),
        ("trusted_proxies = ['10.0.0.1']\n[auth]\nhtpasswd_file = '@'", ""),
    ],
)
def test_warnings_at_start(
    directory: Path, prepared_store: ChrootStore, start: Start, settings: str, warning: str
) -> None:
    file = password_file(directory / "htpasswd")
    registry = Registry(directory / "state", prepared_store.root, config=settings.replace("@", str(file)))
    registry.address = "0.0.0.0"  # noqa: S104
    start(registry)
    found = [line["event"] for line in registry.log_lines() if line["event"].startswith("no-")]
    assert found == ([warning] if warning else [])


@pytest.mark.parametrize(
    "table", ["auth]\nhtpasswd_file = '@'", "tls]\ncertificate_file = '@'\nkey_file = '@'"]
)
def test_files_that_are_not_there(directory: Path, prepared_store: ChrootStore, table: str) -> None:
    registry = Registry(directory / "state", prepared_store.root)
    registry.state.mkdir()
    file = registry.state / "settings.toml"
    file.write_text(f"[{table.replace('@', '/nonexistent')}")
    command = [*PROGRAM, "serve", "--listen", "127.0.0.1:0", "--config", file, *registry.options]
    done = run(*command, env=registry.program_env, check=False)
    assert done.returncode == 1
    assert "/nonexistent" in done.stderr
    assert "cannot be used" in done.stderr
    assert "Traceback" not in output_of(done)


class Issuer(SimpleHTTPRequestHandler):
    """Serves the files of a directory, as an issuer of tokens can."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


@pytest.fixture
def issuer(directory: Path) -> Iterator[tuple[str, Key]]:
    """Its URL and its key."""
    files, key = directory / "issuer", Key.generate("one", "RS256")
    (files / ".well-known").mkdir(parents=True)
    with Server(partial(Issuer, directory=str(files))).running() as server:
        configuration = {"issuer": server.url, "jwks_uri": f"{server.url}/keys"}
        (files / ".well-known/openid-configuration").write_text(json.dumps(configuration))
        (files / "keys").write_text(json.dumps({"keys": [key.jwk]}))
        yield server.url, key


def test_tokens_of_an_issuer(
    directory: Path, prepared_store: ChrootStore, start: Start, issuer: tuple[str, Key]
) -> None:
    """As they are, as a password, and in exchange for one of ours; a claim decides."""
    url, key = issuer
    config = f"""
[limits]
client_failures = 0
[auth]
tokens = true
[auth.issuers.corp]
url = "{url}"
audience = "registry"
[[auth.rules]]
users = ["corp:*"]
claims = {{ groups = ["dev", "ops"] }}
[[auth.rules]]
effect = "deny"
users = ["corp:mallory"]
"""
    registry = start(Registry(directory / "state", prepared_store.root, config=config))

    def get(target: str, authorization: str) -> Response:
        return registry.get(target, Authorization=authorization)

    good = key.sign(payload(url, groups=["ops"]))
    image = "/v2/hello/manifests/latest"
    for authorization in (f"Bearer {good}", basic("oidc", good)):
        assert get(image, authorization).status == 200
        assert get("/nix-cache/nix-cache-info", authorization).status == 200
        ours = get("/token?scope=repository:hello:pull", authorization).json()["token"]
        assert get(image, f"Bearer {ours}").status == 200
    for claims in ({"groups": ["other"]}, {}, {"groups": ["ops"], "sub": "mallory"}):
        other = key.sign(payload(url, **claims))
        assert is_refused(get(image, f"Bearer {other}"), 403)
        ours = get("/token?scope=repository:hello:pull", basic("oidc", other)).json()["token"]
        assert is_refused(get(image, f"Bearer {ours}"))
    for name, forged in forgeries(key, payload(url, groups=["ops"])).items():
        for authorization in (f"Bearer {forged}", basic("oidc", forged)):
            assert is_refused(get(image, authorization), 401), name
            assert is_refused(get("/token?scope=repository:hello:pull", authorization), 401), name
    for claims in ({"aud": "other"}, {"exp": 1}, {"iss": "nixery-snap"}):
        wrong = key.sign(payload(url, groups=["ops"]) | claims)
        assert is_refused(get(image, f"Bearer {wrong}"), 401)
    assert '"user": "corp:bob"' in registry.log.read_text()
    assert good not in registry.log.read_text()


def test_tls(directory: Path, prepared_store: ChrootStore) -> None:
    """With a certificate that is renewed while the server runs; large blobs are whole."""
    need("openssl")

    def make(name: str) -> None:
        self_signed(directory / "tls.crt", directory / "tls.key", name, "IP:127.0.0.1")

    def get(target: str) -> tuple[str, bytes]:
        """Who the server says it is, and the body."""
        trusting = ssl.create_default_context(cafile=directory / "tls.crt")
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=280, context=trusting)
        with contextlib.closing(connection):
            connection.request("GET", target, headers={"Accept": OCI_MANIFEST})
            answer = connection.getresponse()
            assert answer.status == 200, target
            subject = dict(pair for [pair] in connection.sock.getpeercert()["subject"])
            return subject["commonName"], answer.read()

    make("first")
    registry = Registry(directory / "state", prepared_store.root)
    registry.state.mkdir()
    port = registry.port = free_port()
    files = {"NIXERY_SNAP_TLS__CERTIFICATE_FILE": str(directory / "tls.crt")}
    files["NIXERY_SNAP_TLS__KEY_FILE"] = str(directory / "tls.key")
    command = [*PROGRAM, "serve", "--listen", registry.host, *registry.options]
    daemon = Daemon(command, log=registry.log, env={**registry.program_env, **files})

    def ready() -> bool:
        try:
            return get("/readyz")[1] == b"ready\n"
        except (OSError, AssertionError):
            return False

    def answers_as_second() -> bool:
        try:
            return get("/healthz") == ("second", b"ok\n")
        except ssl.SSLError:  # the certificate of before is not trusted any more
            return False

    try:
        daemon.wait_ready(ready)
        name, manifest = get("/v2/shell/hello/manifests/latest")
        assert name == "first"
        for layer in json.loads(manifest)["layers"]:
            assert digest_of(get(f"/v2/shell/hello/blobs/{layer['digest']}")[1]) == layer["digest"]
        assert f"extra-substituters = https://127.0.0.1:{port}/nix-cache" in get("/")[1].decode()
        make("second")
        wait_until(answers_as_second, seconds=60, what="the new certificate is shown")
        registry.wait_for_event("certificate-read-again")  # a thread reads it, and says so afterwards
    finally:
        daemon.stop()
