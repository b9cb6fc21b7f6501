"""Where a registry is asked: containerd's `hosts.toml` (containerd, docs/hosts.md), as far as manifests go."""

from __future__ import annotations

import ipaddress
import ssl
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from nixery_snap.errors import SettingsError

_NEEDED: Final = "resolve"
_ALIASES: Final = {"docker.io": "registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """`url` is what names and `manifests/` come behind; `tls` as aiohttp takes it."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | bool = True


def registry_hosts(certs_directory: Path, host: str) -> list[RegistryHost]:
    """Whom to ask for images of `host` (HOST[:PORT]), in order. Blocking; raises SettingsError."""
    name, _, port = host.partition(":")
    for directory in (host, f"{name}_{port}_" if port else host, "_default"):
        file = certs_directory / directory / "hosts.toml"
        try:
            if file.is_file():
                return list(_configured(tomllib.loads(file.read_text()), host, file.parent))
        except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise SettingsError("image_service.certs_directory", f"{file} cannot be read: {error}") from error
    return [_itself(host)]


def _configured(table: Mapping[str, Any], host: str, directory: Path) -> Iterator[RegistryHost]:
    for url, settings in table.get("host", {}).items():
        if _NEEDED in settings.get("capabilities", ["pull", "resolve", "push"]):
            yield _host(url, settings, directory)
    yield _host(table["server"], table, directory) if table.get("server") else _itself(host)


def _host(url: str, settings: Mapping[str, Any], directory: Path) -> RegistryHost:
    if "://" not in url:
        url = f"{_scheme(url)}://{url}"
    url = url.rstrip("/")
    if not settings.get("override_path") and not url.endswith("/v2"):
        url += "/v2"
    headers = {
        name: ", ".join(value) if isinstance(value, list) else str(value)
        for name, value in settings.get("header", {}).items()
    }
    return RegistryHost(url, headers, _tls(settings, directory))


def _tls(settings: Mapping[str, Any], directory: Path) -> ssl.SSLContext | bool:
    if settings.get("skip_verify"):
        return False
    authorities = settings.get("ca", [])
    pairs = settings.get("client", [])
    if not authorities and not pairs:
        return True
    context = ssl.create_default_context()
    for file in [authorities] if isinstance(authorities, str) else authorities:
        context.load_verify_locations(directory / file)
    for pair in [pairs] if isinstance(pairs, str) else pairs:
        certificate, key = (pair, None) if isinstance(pair, str) else (pair[0], pair[1])
        context.load_cert_chain(directory / certificate, directory / key if key else None)
    return context


def _itself(host: str) -> RegistryHost:
    return RegistryHost(f"{_scheme(host)}://{_ALIASES.get(host, host)}/v2")


def _scheme(host: str) -> str:
    """containerd, too, speaks plain HTTP with this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        is_local = name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_local = False
    return "http" if is_local else "https"
