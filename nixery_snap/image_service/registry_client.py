"""Asks a registry for one manifest, with the credentials that the kubelet has for the pull."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from nixery_snap import tracing
from nixery_snap.errors import InvalidFormat, NotFound, SourceError
from nixery_snap.image_service.generated.cri_pb2 import AuthConfig
from nixery_snap.image_service.registry_hosts import RegistryHost, registry_hosts
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import MAX_MANIFEST_BYTES, Manifest
from nixery_snap.oci.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from nixery_snap.oci.reference import check_name, check_tag

_DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_ACCEPT: Final = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, _DOCKER_INDEX))
_TIMEOUT: Final = aiohttp.ClientTimeout(total=300, sock_connect=5)  # it may be making the image just now
_MAX_TOKEN_BYTES: Final = 64 * 1024
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry; `version` is a digest, or else a tag."""

    host: str
    name: str
    version: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """As Docker reads it. Raises InvalidName, InvalidFormat."""
        rest, _, digest = text.partition("@")
        first, slash, remainder = rest.partition("/")
        if slash and (first == "localhost" or "." in first or ":" in first):
            host, rest = first, remainder
        else:
            host = "docker.io"
        name, _, tag = rest.partition(":")
        if host == "docker.io" and "/" not in name:
            name = f"library/{name}"
        check_name(name)
        version = str(Digest.parse(digest)) if digest else check_tag(tag or "latest")
        return cls(host, name, version)


class RegistryClient:
    """`certs_directory` is containerd's `config_path`."""

    def __init__(self, certs_directory: Path, architecture: str) -> None:
        self._certs_directory = certs_directory
        self._architecture = architecture
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)

    async def close(self) -> None:
        await self._session.close()

    async def manifest(self, reference: Reference, auth: AuthConfig) -> tuple[Digest, Manifest]:
        """This node's manifest. Raises NotFound, SourceError, SettingsError, InvalidFormat."""
        hosts = await asyncio.to_thread(registry_hosts, self._certs_directory, reference.host)
        failures = []
        for host in hosts:
            try:
                return await self._from(host, reference, auth)
            except (aiohttp.ClientError, TimeoutError, NotFound, SourceError) as error:
                failures.append(f"{host.url}: {error or type(error).__name__}")
        raise SourceError(f"no registry gave the manifest of {reference.name}: {'; '.join(failures)}")

    async def _from(
        self, host: RegistryHost, reference: Reference, auth: AuthConfig
    ) -> tuple[Digest, Manifest]:
        version = reference.version
        for _ in range(3):
            content = await self._get(host, reference, version, auth)
            digest = Digest.of(content)
            if ":" in version and str(digest) != version:
                raise SourceError(f"what it has as {version} is something else")
            value = _parsed(content)
            if "manifests" not in value:
                return digest, Manifest.parse(content)
            version = self._chosen(value)
        raise SourceError("its indexes have too many levels")

    def _chosen(self, index: dict[str, Any]) -> str:
        try:
            return next(
                str(Digest.parse(entry["digest"]))
                for entry in index["manifests"]
                if entry.get("platform", {}).get("architecture", self._architecture) == self._architecture
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidFormat("index", str(index)[:200], repr(error)) from error
        except StopIteration:
            raise SourceError(f"it has no image for {self._architecture}") from None

    async def _get(self, host: RegistryHost, reference: Reference, version: str, auth: AuthConfig) -> bytes:
        url = f"{host.url}/{reference.name}/manifests/{version}"
        query = {} if urlsplit(host.url).netloc == reference.host else {"ns": reference.host}
        headers = {"Accept": _ACCEPT, **host.headers}
        if parent := tracing.traceparent():
            headers[tracing.TRACEPARENT] = parent
        server = urlsplit(auth.server_address if "://" in auth.server_address else f"//{auth.server_address}")
        if server.netloc not in {"", reference.host, urlsplit(host.url).netloc}:
            auth = AuthConfig()  # it is for somebody else
        if auth.registry_token:
            headers["Authorization"] = f"Bearer {auth.registry_token}"
        for attempt in range(2):
            async with self._session.get(url, params=query, headers=headers, ssl=host.tls) as response:
                if response.status == 401 and not attempt:
                    challenge = response.headers.get("WWW-Authenticate", "")
                    headers["Authorization"] = await self._authorization(host, challenge, auth)
                    continue
                if response.status != 200:
                    raise SourceError(f"status {response.status}")
                return await _read(response, MAX_MANIFEST_BYTES)
        raise SourceError("it does not take the credentials")

    async def _authorization(self, host: RegistryHost, challenge: str, auth: AuthConfig) -> str:
        """The header that answers the challenge (RFC 9110, section 11.6.1; distribution, "Token")."""
        scheme, _, rest = challenge.partition(" ")
        basic = _basic(auth)
        if scheme.lower() == "basic" and basic:
            return basic
        parameters = dict(_PARAMETER.findall(rest))
        if scheme.lower() != "bearer" or not parameters.get("realm", "").startswith(("https://", "http://")):
            raise SourceError("it asks for credentials that there are none of")
        wanted = {key: parameters[key] for key in ("service", "scope") if key in parameters}
        realm = parameters["realm"]
        if auth.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": auth.identity_token}
            call = self._session.post(
                realm, data={**wanted, **form, "client_id": "nixery-snap"}, ssl=host.tls
            )
        else:
            call = self._session.get(
                realm, params=wanted, headers={"Authorization": basic} if basic else {}, ssl=host.tls
            )
        async with call as response:
            if response.status != 200:
                raise SourceError(f"its token service answers with status {response.status}")
            value = _parsed(await _read(response, _MAX_TOKEN_BYTES))
        token = value.get("token") or value.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise SourceError("its token service gives no token")
        return f"Bearer {token}"


def _basic(auth: AuthConfig) -> str:
    if auth.auth:
        return f"Basic {auth.auth}" if auth.auth.isascii() and auth.auth.isprintable() else ""
    if auth.username:
        pair = f"{auth.username}:{auth.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"
    return ""


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > limit_bytes:
            raise SourceError(f"it answers with more than {limit_bytes} bytes")
    return bytes(content)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"it answers with what is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError("it answers with JSON that is no object")
    return value
