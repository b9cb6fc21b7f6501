"""All settings as one value, and what follows from them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import Field, PositiveInt, model_validator

from nixery_snap.access.rules import Patterns
from nixery_snap.imaging.request import DEFAULT_SOURCE, ImageFormat, SourceNames
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix_stores.cache_transport import shown_url
from nixery_snap.oci.compression import Compression
from nixery_snap.settings.sections import (
    AuthSettings,
    BinaryCacheSettings,
    ImageServiceSettings,
    LimitSettings,
    MetricsSettings,
    NixSettings,
    ObjectStoreSettings,
    RetentionSettings,
    Section,
    SourceSettings,
    SubstituterSettings,
    SubstitutionSettings,
    TlsSettings,
    TracingSettings,
)
from nixery_snap.settings.source_options import useless_options
from nixery_snap.settings.values import (
    AttributeText,
    ListenAddress,
    NamePart,
    NetworkText,
    PopularityPlace,
    SourceSpec,
    System,
    masked,
)

CACHE_PREFIX: Final = "/nix-cache"
OWN_CACHE: Final = "own"  # stands for our binary cache among those of the clients
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
SHELL_PACKAGES: Final = ("bashInteractive", "coreutils", "moreutils", "nano")


class Settings(Section):
    """All settings of the program."""

    listen: ListenAddress = "127.0.0.1:8080"
    """Where to serve; does not count where systemd holds the socket."""
    format: ImageFormat = ImageFormat.CLASSIC
    """Of images whose name says none."""
    storage: str = ""
    """[Object store](storage.md): `file:///DIRECTORY`, `memory://`, `s3://BUCKET`, `gs://BUCKET` or `az://CONTAINER`,
    each bucket with `/PREFIX` if need be; when empty, `/var/lib/nixery-snap` for root and
    `~/.local/state/nixery-snap` for other users."""
    cache_directory: str = ""
    """For what can be made again (checkouts, Nix's HOME), and for links that keep store paths from the garbage
    collector; when empty, `/var/cache/nixery-snap` for root and `~/.cache/nixery-snap` for other users."""
    source: SourceSpec = "path:/etc/nixery-snap/packages"
    """The default package set."""
    sources: dict[str, SourceSettings] = Field(default={})
    """More package sets, by names for the log; the options of the default one as `[sources.default]`."""
    systems: Annotated[tuple[System, ...], Field(min_length=1)] = ("x86_64-linux", "aarch64-linux")
    """For which images are made; the first is meant where a name says nothing."""
    base_packages: tuple[AttributeText, ...] = ("cacert", "iana-etc")
    """In every image, as far as the package set has them."""
    meta_packages: dict[NamePart, tuple[AttributeText, ...]] = Field(default={})
    """More names like `shell`, each standing for a list of attribute paths."""
    popularity: PopularityPlace = ""
    """As `nixery-snap popularity` writes it, read at start: what many packages depend on gets layers of its own in
    classic images."""
    index: Literal["off", "nix-snapshotter", "all"] = "nix-snapshotter"
    """Which images are answered as an image index of all `systems`, where a name says no architecture and the client
    takes one: snapshotter images (they cost little), `all` (classic ones of every system are then made before the
    answer), or none."""
    compression: Compression = Compression.GZIP
    """Of the layers of classic images, for clients that name OCI's manifests in their Accept header. Docker takes zstd
    layers from version 23 on, containerd from 1.5, podman and skopeo do. **Docker 20.10 does not**, and its requests
    look like those of newer ones."""
    catalogue: bool = True
    """Tell at `/v2/_catalog` under which names images were made, with their packages in sorted order; `false` when
    clients must not see what others ask for."""
    workers: PositiveInt = 1
    """Processes that share the port; `nix.builds`, `nix.evaluators` and `limits` are for each of them."""
    log_format: Literal["json", "console"] = "json"
    """How log lines are written: for machines, or for people."""
    access_log: bool = False
    """Log every request, not only those that fail; costs most of the speed of repeated requests."""
    object_store: ObjectStoreSettings = ObjectStoreSettings()
    trusted_proxies: tuple[NetworkText, ...] = ()
    """Addresses and networks of proxies whose X-Forwarded-For, -Proto and -Host are believed."""
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    nix: NixSettings = NixSettings()
    substituters: tuple[SubstituterSettings, ...] = (
        SubstituterSettings(
            url="https://cache.nixos.org",
            public_keys=("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",),
        ),
    )
    """Binary caches that paths are taken from, asked by priority, then in this order; `[]` for none."""
    substitution: SubstitutionSettings = SubstitutionSettings()
    binary_cache: BinaryCacheSettings = BinaryCacheSettings()
    image_service: ImageServiceSettings = ImageServiceSettings()
    limits: LimitSettings = LimitSettings()
    metrics: MetricsSettings = MetricsSettings()
    retention: RetentionSettings = RetentionSettings()
    tracing: TracingSettings = TracingSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.workers > 1 and self.storage.startswith("memory:"):
            raise ValueError(
                "workers: several processes cannot share storage memory://; use file:///DIRECTORY or a bucket"
            )
        self._check_sources()
        self._check_rules()
        if bool(self.tls.certificate_file) != bool(self.tls.key_file):
            raise ValueError("tls: certificate_file and key_file belong together")
        if self.auth.tokens and not self.auth.is_on:
            raise ValueError("auth.tokens: nobody needs one: give htpasswd_file, issuers or rules")
        cache, known = self.binary_cache, {substituter.url for substituter in self.substituters}
        if len(set(map(shown_url, known))) < len(self.substituters):
            raise ValueError(
                "substituters: a URL stands there twice; user, password and most parameters do not count"
            )
        for key, urls, more in (
            ("client_substituters", cache.client_substituters, {OWN_CACHE}),
            ("upstreams", cache.upstreams, set()),
        ):
            for url in set(urls) - known - more:
                raise ValueError(
                    f"binary_cache.{key}: {masked(url)!r} is not the url of one of [[substituters]]"
                )
        if OWN_CACHE in cache.client_substituters and not cache.enabled:
            raise ValueError("binary_cache.client_substituters: 'own' is not served, as enabled = false")
        if cache.annotations in {"both", "closure"} and OWN_CACHE not in self.client_substituters:
            raise ValueError(
                f"binary_cache.annotations: {cache.annotations!r} needs our own cache: set enabled = true and have"
                " 'own' among client_substituters"
            )
        if cache.annotations in {"both", "closure"} and cache.publish == "off":
            raise ValueError(
                f"binary_cache.annotations: {cache.annotations!r} needs closure-info paths to be published:"
                " set publish to 'missing'"
            )
        return self

    def _check_sources(self) -> None:
        taken = dict.fromkeys(self.all_meta_packages, "a meta-package")
        for name, source in self.sources.items():
            keys = [*filter(None, [source.prefix]), *(f"host {host.lower()}" for host in source.hosts)]
            if name == DEFAULT_SOURCE:
                if source.spec or keys:
                    raise ValueError(
                        f"sources.{name}: where it is says `source`, and what no other is asked for is its own"
                    )
            elif not source.spec or not keys:
                raise ValueError(
                    f"sources.{name}: give it a spec, and a prefix or hosts by which it is asked for"
                )
            if source.separate and (name == DEFAULT_SOURCE or not _PLAIN_NAME.fullmatch(name)):
                raise ValueError(
                    f"sources.{name}: separate is for others than the default one, whose names have letters, digits,"
                    " '-' and '_' alone; the others then are separate from it"
                )
            for key in keys:
                if key in taken:
                    raise ValueError(f"sources.{name}: {key!r} already means {taken[key]}")
                taken[key] = f"sources.{name}"
        for name, source in self.all_sources.items():
            if useless := useless_options(source):
                kind = source.spec.partition(":")[0]
                raise ValueError(
                    f"sources.{name}: {', '.join(useless)}: a source that is {kind}:… has no use for it"
                )

    def _check_rules(self) -> None:
        """What shares a compartment cannot be for some alone: whoever has a digest of one gets it by the other."""
        shared = sorted(self.all_sources.keys() - self.separate_sources)
        for number, rule in enumerate(self.auth.rules):
            told_apart = Patterns(rule.sources)
            inside = [name for name in shared if name in told_apart]
            if inside and len(inside) < len(shared):
                other = next(name for name in shared if name not in inside)
                raise ValueError(
                    f"auth.rules.{number}: it tells sources.{inside[0]} from sources.{other}, which share their"
                    " images and store paths: set separate = true for one of them"
                )

    @property
    def all_sources(self) -> dict[str, SourceSettings]:
        """By name, the default one among them, each with its spec."""
        default = self.sources.get(DEFAULT_SOURCE, SourceSettings())
        return {**self.sources, DEFAULT_SOURCE: default.model_copy(update={"spec": self.source})}

    @property
    def separate_sources(self) -> frozenset[str]:
        return frozenset(name for name, source in self.sources.items() if source.separate)

    def storage_url_of(self, source: str) -> str:
        """Of what a separate source has by itself."""
        parts = urlsplit(self.storage_url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/separate/{source}"))

    def cache_prefix_of(self, source: str) -> str:
        return f"{CACHE_PREFIX}-of/{source}"

    @property
    def source_names(self) -> SourceNames:
        return SourceNames(
            {source.prefix: name for name, source in self.sources.items() if source.prefix},
            {host.lower(): name for name, source in self.sources.items() for host in source.hosts},
        )

    @property
    def index_formats(self) -> frozenset[ImageFormat]:
        match self.index:
            case "off":
                return frozenset()
            case "all":
                return frozenset(ImageFormat)
            case _:
                return frozenset({ImageFormat(self.index)})

    @property
    def client_substituters(self) -> frozenset[str]:
        """The URLs of those that clients fetch from; OWN_CACHE stands for ours."""
        own = {OWN_CACHE} if self.binary_cache.enabled else set()
        urls = self.binary_cache.client_substituters
        return frozenset(urls or {*(substituter.url for substituter in self.substituters), *own})

    @property
    def names_closure_info(self) -> bool:
        """Whether snapshotter images name a closure-info path."""
        cache = self.binary_cache
        if cache.annotations == "auto":
            return OWN_CACHE in self.client_substituters and cache.publish != "off"
        return cache.annotations != "legacy"

    def cache_url(self, host: str, scheme: str) -> str:
        """Of our own binary cache, as clients are told; `scheme` and `host` are how they call this server."""
        return self.binary_cache.public_url.rstrip("/") or f"{scheme}://{host}{CACHE_PREFIX}"

    @property
    def signing_key_path(self) -> Path | None:
        """None: there is no place to keep a key."""
        if self.binary_cache.signing_key_file:
            return Path(self.binary_cache.signing_key_file).absolute()
        return self._secret_path("signing-key")

    @property
    def token_key_path(self) -> Path | None:
        """As of the signing key."""
        if self.auth.token_key_file:
            return Path(self.auth.token_key_file).absolute()
        return self._secret_path("token-key")

    def _secret_path(self, name: str) -> Path | None:
        parts = urlsplit(self.storage_url)
        if parts.scheme == "memory":
            return None
        state = Path(unquote(parts.path)) if parts.scheme == "file" else _state_directory()
        return state / "secrets" / name

    @property
    def storage_url(self) -> str:
        return self.storage or _state_directory().as_uri()

    @property
    def cache_path(self) -> Path:
        if self.cache_directory:
            return Path(self.cache_directory).absolute()
        return _directory("/var/cache", "XDG_CACHE_HOME", ".cache")

    @property
    def gc_roots_path(self) -> Path:
        """Links that keep store paths from the garbage collector."""
        return self.cache_path / "gcroots"

    @property
    def all_meta_packages(self) -> dict[str, tuple[AttributePath, ...]]:
        texts = {"shell": SHELL_PACKAGES, **self.meta_packages}
        return {name: tuple(map(AttributePath.parse, paths)) for name, paths in texts.items()}


def _state_directory() -> Path:
    return _directory("/var/lib", "XDG_STATE_HOME", ".local/state")


def _directory(system: str, variable: str, default: str) -> Path:
    """The program's directory below the system's for root, else below the user's (XDG base directories)."""
    if os.geteuid() == 0:
        return Path(system, "nixery-snap")
    return Path(os.environ.get(variable) or Path.home() / default, "nixery-snap").absolute()
