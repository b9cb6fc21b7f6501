"""Makes single adapters out of settings; `service.py` wires all of them, `doctor.py` tries them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from nixery_snap.errors import InvalidFormat, SettingsError
from nixery_snap.imaging.layering import UNKNOWN_POPULARITY, Popularity
from nixery_snap.imaging.request import DEFAULT_SOURCE
from nixery_snap.nix.signing import PublicKey, SecretKey
from nixery_snap.nix_stores.cache_transport import open_transport
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.nix_stores.own_transport import Forgetful, OwnTransport
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import CacheFiles, PackageSource, PinStore, Records
from nixery_snap.settings import OWN_CACHE, Settings, masked
from nixery_snap.sources.credentials import basic
from nixery_snap.sources.opening import SourceOptions, open_source

_POPULARITY_BYTES: Final = 64 * 1024 * 1024
_POPULARITY_SECONDS: Final = 30


def open_nix(settings: Settings) -> NixCommand:
    """Makes the directories that it needs. Raises SettingsError."""
    store = NixStore.parse(settings.nix.store)
    home = settings.cache_path / "home"
    try:
        for directory in (home, settings.gc_roots_path):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{settings.cache_path} cannot be used: {error.strerror}"
        raise SettingsError("cache_directory", reason) from error
    return NixCommand(store, home, settings.nix.options)


def open_objects(settings: Settings, source: str | None = None) -> ObjectStore:
    """What a separate source has by itself, or else what the others share. Raises SettingsError."""
    limits = settings.object_store
    return ObjectStore(
        settings.storage_url if source is None else settings.storage_url_of(source),
        url_lifetime_seconds=limits.url_lifetime if limits.delivery == "redirect" else None,
        timeout_seconds=limits.timeout,
    )


def open_every(settings: Settings) -> list[ObjectStore]:
    """The shared one first. Raises SettingsError."""
    return [open_objects(settings, source) for source in (None, *sorted(settings.separate_sources))]


def own_substituter(files: CacheFiles, key: SecretKey) -> Substituter:
    """Our own binary cache as one to take paths from."""
    return Substituter(
        OWN_CACHE, OwnTransport(OWN_CACHE, files), [key.public_key], Forgetful(), priority=0, negative_ttl=0
    )


def open_substituters(settings: Settings, records: Records) -> dict[str, Substituter]:
    """Those of the settings, by their URLs there. Raises SettingsError."""
    limits = settings.substitution
    return {
        one.url: Substituter(
            one.url,
            open_transport(one.url, request_timeout=limits.request_timeout, nar_timeout=limits.nar_timeout),
            [PublicKey.parse(text) for text in one.public_keys],
            records,
            priority=one.priority,
            negative_ttl=limits.negative_ttl,
            concurrency=limits.concurrency,
        )
        for one in settings.substituters
    }


def nix_options(settings: Settings, key: SecretKey, others: Mapping[str, Substituter]) -> dict[str, str]:
    """What Nix is told of the substituters that answer, beside its own configuration.

    One that does not would make Nix wait, or fail, where it could build.
    """
    sound = [one for one in settings.substituters if others[one.url].is_sound]
    urls = [one.url for one in sound]
    keys = [text for one in sound for text in one.public_keys]
    if settings.storage_url.startswith("file:"):
        # What a replica, or we before our Nix store was cleaned, have built and published.
        urls.append(settings.storage_url)
        keys.append(str(key.public_key))
    return ({"builders": settings.nix.builders} if settings.nix.builders else {}) | {
        "extra-substituters": " ".join(urls),
        "extra-trusted-public-keys": " ".join(keys),
        "fallback": "true",
        "connect-timeout": "5",
        "download-attempts": "2",
        "stalled-download-timeout": str(int(settings.substitution.request_timeout) or 1),
    }


def open_source_of(settings: Settings, name: str, pins: PinStore) -> PackageSource:
    """Raises SettingsError."""
    source = settings.all_sources[name]

    def file(text: str) -> Path | None:
        return Path(text).absolute() if text else None

    options = SourceOptions(
        settings.cache_path,
        key="source" if name == DEFAULT_SOURCE else f"sources.{name}",
        pin_ttl_seconds=source.pin_ttl,
        pin_stale_seconds=source.pin_stale,
        overlays=tuple(Path(overlay).absolute() for overlay in source.overlays),
        nixpkgs_config=source.nixpkgs_config,
        allows_builds=source.allow_import_from_derivation,
        restricted=not source.spec.startswith("path:") if source.restricted is None else source.restricted,
        commits=source.commits,
        submodules=source.submodules,
        lfs=source.lfs,
        fetch_timeout_seconds=source.fetch_timeout,
        channels=source.channels,
        channels_url=source.channels_url,
        commits_url=source.commits_url,
        github_url=source.github_url,
        token_file=file(source.token_file),
        netrc_file=file(source.netrc_file),
        ssh_key_file=file(source.ssh_key_file),
        ssh_known_hosts_file=file(source.ssh_known_hosts_file),
    )
    return open_source(source.spec, options, pins)


def read_popularity(where: str) -> Popularity:
    """From a file, or once from an HTTP server. Raises SettingsError."""
    if not where:
        return UNKNOWN_POPULARITY
    try:
        if "://" in where:
            with urlopen(_with_login(where), timeout=_POPULARITY_SECONDS) as response:  # noqa: S310 - the settings allow http and https
                content = response.read(_POPULARITY_BYTES)
        else:
            with Path(where).open("rb") as file:
                content = file.read(_POPULARITY_BYTES)
        return Popularity.parse(content)
    except (OSError, HTTPException, InvalidFormat) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the answer, too
        raise SettingsError("popularity", f"{masked(where)} cannot be read: {error}") from None


def _with_login(url: str) -> Request:
    """User and password of a URL go into a header."""
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)))  # noqa: S310 - the settings allow http and https
    if login:
        user, _, password = map(unquote, login.partition(":"))
        request.add_unredirected_header("Authorization", basic(user, password))
    return request
