"""Manifests from real HTTP servers that are as difficult as registries are."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from nixery_snap.errors import NixerySnapError, SourceError
from nixery_snap.image_service.generated.cri_pb2 import AuthConfig
from nixery_snap.image_service.registry_client import Reference, RegistryClient
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.media_types import OCI_MANIFEST
from tests.integration.image_archives import descriptor, index_of

MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "config": descriptor(b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [],
    }
).encode()
DIGEST = Digest.of(MANIFEST)
SECRET, TOKEN = "s3cret", "t0ken"
BASIC = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()


class Server:
    """`/v2/NAME/manifests/VERSION`: the name says how it answers."""

    def __init__(self) -> None:
        self.seen: list[web.Request] = []
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def manifest(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        name, version = request.match_info["name"], request.match_info["version"]
        given = request.headers.get("Authorization", "")
        if name == "basic" and given != BASIC:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if name == "token" and given != f"Bearer {TOKEN}":
            challenge = f'Bearer realm="http://{self.host}/token",service="s",scope="repository:token:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if name == "elsewhere":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Bearer realm="file:///etc/passwd"'})
        if name == "huge":
            return web.Response(body=bytes(5 * 1024 * 1024))
        if name == "broken":
            return web.Response(body=b"{")
        if name == "loop" or (name == "multi" and version == "latest"):
            other = b"x" if name == "multi" else index_of()
            entries = [descriptor(b"arm", OCI_MANIFEST) | {"platform": {"architecture": "arm64"}}]
            chosen = MANIFEST if name == "multi" else other
            entries.append(descriptor(chosen, OCI_MANIFEST) | {"platform": {"architecture": "amd64"}})
            return web.Response(body=index_of(*entries))
        if name == "missing":
            return web.Response(status=404)
        return web.Response(body=MANIFEST)

    async def token(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        if request.method == "POST":
            form = await request.post()
            is_right = form["refresh_token"] == SECRET and form["service"] == "s"
        else:
            is_right = request.headers.get("Authorization") == BASIC and request.query["service"] == "s"
        return web.json_response({"token": TOKEN}) if is_right else web.Response(status=401)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_get("/v2/{name}/manifests/{version}", made.manifest)
    app.router.add_route("*", "/token", made.token)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RegistryClient]:
    made = RegistryClient(tmp_path, "amd64")
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("name", "auth"),
    [
        ("open", AuthConfig()),
        ("basic", AuthConfig(username="me", password=SECRET)),
        ("basic", AuthConfig(auth=base64.b64encode(f"me:{SECRET}".encode()).decode())),
        ("token", AuthConfig(username="me", password=SECRET)),
        ("token", AuthConfig(identity_token=SECRET)),
        ("token", AuthConfig(registry_token=TOKEN)),
        ("multi", AuthConfig()),
    ],
)
async def test_found(server: Server, client: RegistryClient, name: str, auth: AuthConfig) -> None:
    digest, manifest = await client.manifest(Reference(server.host, name, "latest"), auth)
    assert digest == DIGEST
    assert manifest.layers == ()


async def test_by_digest(server: Server, client: RegistryClient) -> None:
    found, _ = await client.manifest(Reference(server.host, "open", str(DIGEST)), AuthConfig())
    assert found == DIGEST
    with pytest.raises(SourceError, match="is something else"):
        await client.manifest(Reference(server.host, "open", str(Digest.of(b"x"))), AuthConfig())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("basic", "credentials"),
        ("token", "token service"),
        ("elsewhere", "credentials"),
        ("huge", "more than"),
        ("broken", "no JSON"),
        ("loop", "is something else"),
        ("missing", "status 404"),
    ],
)
async def test_not_found(server: Server, client: RegistryClient, name: str, message: str) -> None:
    with pytest.raises(NixerySnapError, match=message):
        await client.manifest(Reference(server.host, name, "latest"), AuthConfig())


async def test_credentials_are_for_their_server_only(server: Server, client: RegistryClient) -> None:
    secret = AuthConfig(username="me", password=SECRET, server_address="https://other.example")
    with pytest.raises(NixerySnapError) as raised:
        await client.manifest(Reference(server.host, "basic", "latest"), secret)
    assert SECRET not in str(raised.value)
    assert not [one for one in server.seen if "Authorization" in one.headers]


async def test_mirrors_are_told_whom_they_stand_for(
    server: Server, client: RegistryClient, tmp_path: Path
) -> None:
    (tmp_path / "registry.example").mkdir()
    (tmp_path / "registry.example/hosts.toml").write_text(
        f'server = "http://{server.host}"\n[host."http://127.0.0.1:9"]\n'
    )
    digest, _ = await client.manifest(Reference("registry.example", "open", "v"), AuthConfig())
    assert digest == DIGEST
    assert server.seen[0].query["ns"] == "registry.example"
