"""Typed settings: defaults < TOML file < Nixery's environment < ours < flags. Every default stands here."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveInt,
    ValidationError,
    model_validator,
)

from nixery_snap.drop_in import nixery_settings
from nixery_snap.errors import InvalidFormat, InvalidName, SettingsError
from nixery_snap.imaging.layering import DEFAULT_MAX_LAYERS
from nixery_snap.imaging.request import ARCHITECTURES, DEFAULT_SOURCE, ImageFormat, SourceNames
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.signing import PublicKey
from nixery_snap.oci.reference import check_name

ENVIRONMENT_PREFIX: Final = "NIXERY_SNAP_"
FILE_VARIABLE: Final = "NIXERY_SNAP_CONFIG"  # names the settings file
CACHE_SCHEMES: Final = ("https", "http", "file", "s3", "gs")
SOURCE_KINDS: Final = ("path", "channel", "tarball", "flake")
CACHE_PREFIX: Final = "/nix-cache"
OWN_CACHE: Final = "own"  # stands for our binary cache among those of the clients
SHELL_PACKAGES: Final = ("bashInteractive", "coreutils", "moreutils", "nano")


def _attribute_path(text: str) -> str:
    try:
        return str(AttributePath.parse(text))
    except InvalidFormat as error:
        raise ValueError(str(error)) from None


def _source(text: str) -> str:
    kind, _, rest = text.partition(":")
    if not rest or not (kind in SOURCE_KINDS or kind.startswith("git+")):
        # Not what it is instead: it may hold a password.
        raise ValueError(f"it must be one of git+URL, {', '.join(f'{kind}:…' for kind in SOURCE_KINDS)}")
    return f"path:{Path(rest).absolute()}" if kind == "path" else text


def _unix(text: str) -> str:
    if not text.startswith("unix:///"):
        raise ValueError(f"{text!r} is not unix:///PATH")
    return text


def _popularity(text: str) -> str:
    scheme, separator, _ = text.partition("://")
    if separator:
        if scheme not in {"http", "https"}:
            raise ValueError(f"{text!r} is neither a file nor an http or https URL")
        return text
    return str(Path(text).absolute()) if text else ""


def _listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return text


def _prefix(name: str) -> str:
    """One part of an image name that has no meaning yet."""
    try:
        check_name(name)
    except InvalidName as error:
        raise ValueError(str(error)) from None
    if "/" in name or name in {*ARCHITECTURES, *ImageFormat}:
        raise ValueError(
            f"{name!r} cannot be used here: it is no single part of a name, or has a meaning already"
        )
    return name


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", text):
        raise ValueError(f"{text!r} is no name of a host: leave out scheme, port and path")
    return text


def _cache_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in CACHE_SCHEMES or not (parts.path if parts.scheme == "file" else parts.netloc):
        raise ValueError(f"{text!r} is not a URL of a binary cache: {', '.join(CACHE_SCHEMES)}")
    return text.rstrip("/")


def _public_key(text: str) -> str:
    try:
        return str(PublicKey.parse(text))
    except InvalidFormat as error:
        raise ValueError(str(error)) from None


AttributeText = Annotated[str, AfterValidator(_attribute_path)]
NamePart = Annotated[str, AfterValidator(_prefix)]
System = Literal["x86_64-linux", "aarch64-linux"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NixSettings(_Section):
    store: str = "auto"
    """`auto`, `daemon`, or a directory for a private (chroot) store."""
    build_timeout: float = Field(default=3600, gt=0)
    """Seconds until a build is given up."""
    wait_timeout: float = Field(default=60, gt=0)
    """Seconds until a client is told to come back; the work goes on."""
    eval_timeout: float = Field(default=60, gt=0)
    """Seconds for one evaluation."""
    eval_memory_mib: PositiveInt = 4096
    """MiB of memory that one evaluator may take."""
    builds: PositiveInt = 4
    """Images whose packages are built or fetched at a time; each may use as many cores as Nix is told."""
    evaluators: PositiveInt = 2
    """Evaluations at a time."""
    builders: str = ""
    """Machines that build for us, as in nix.conf."""
    options: dict[str, str] = {}
    """Further settings for Nix, as in nix.conf."""


class SourceSettings(_Section):
    """A package set: the default one, called `default`, or another beside it."""

    spec: Annotated[str, AfterValidator(_source)] | Literal[""] = ""
    """Where it is, as in `source`, which says it for the default one."""
    prefix: NamePart | Literal[""] = ""
    """Names that begin with it mean this source, behind the format."""
    hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = ()
    """Clients that call this server by one of these names mean this source."""
    overlays: tuple[str, ...] = ()
    """Files with overlays for package sets that take them."""
    nixpkgs_config: dict[str, JsonValue] = {}
    """As in nixpkgs' `config`: allowUnfree, permittedInsecurePackages …"""
    restricted: bool | None = None
    """Whether evaluation may read nothing but the source; when absent, for all but `path:`."""
    allow_import_from_derivation: bool = False
    """Whether evaluation may build."""
    pin_ttl: float = Field(default=300, ge=0)
    """Seconds for which the revision of a moving tag is not looked for again."""
    pin_stale: float = Field(default=86400, ge=0)
    """Seconds beyond pin_ttl for which the old revision is served while the new one is looked for."""
    channels: tuple[str, ...] = ()
    """Other channels that may be asked for as tags."""
    submodules: bool = False
    lfs: bool = False
    """Files that git keeps elsewhere (Git LFS)."""
    token_file: str = ""
    """Holds an access token for git over HTTPS."""
    netrc_file: str = ""
    ssh_key_file: str = ""
    ssh_known_hosts_file: str = ""
    fetch_timeout: float = Field(default=600, gt=0)
    """Seconds for one fetch."""
    channels_url: str = "https://channels.nixos.org"
    commits_url: str = "https://github.com/NixOS/nixpkgs/archive"
    """Has COMMIT.tar.gz of each commit of nixpkgs."""
    github_url: str = "https://github.com"
    """For flakes at `github:`."""


class SubstituterSettings(_Section):
    """A binary cache that paths are taken from."""

    url: Annotated[str, AfterValidator(_cache_url)]
    public_keys: tuple[Annotated[str, AfterValidator(_public_key)], ...] = ()
    priority: int | None = None
    """Lower is asked first; the cache's own when absent."""


class SubstitutionSettings(_Section):
    concurrency: PositiveInt = 64
    """Requests at a time to each substituter."""
    request_timeout: float = Field(default=15, gt=0)
    """Seconds for one narinfo or listing, and between two pieces of a NAR."""
    nar_timeout: float = Field(default=3600, gt=0)
    """Seconds for one NAR."""
    negative_ttl: float = Field(default=60, ge=0)
    """Seconds for which it is remembered that a substituter does not have a path."""


class BinaryCacheSettings(_Section):
    enabled: bool = True
    """Serve our own binary cache below /nix-cache/."""
    publish: Literal["missing", "all", "off"] = "missing"
    """What of an image's closure is put into it: what no other cache of the clients has, all, or nothing."""
    signing_key_file: str = ""
    """As `nix key generate-secret` makes it; made below the state directory when empty."""
    public_url: str = ""
    """Of our cache, as clients are told; from `listen` when empty."""
    client_substituters: tuple[str, ...] = ()
    """Whom clients fetch from: URLs of substituters and `own` for our cache; when empty, all of these."""
    annotations: Literal["auto", "both", "legacy", "closure"] = "auto"
    """How a snapshotter image names its paths: one by one (legacy), by a closure-info path, or both."""
    upstreams: tuple[str, ...] = ()
    """URLs of substituters whose paths our cache fetches, keeps and serves."""
    priority: int = Field(default=30, ge=0)
    """Told to clients in nix-cache-info; lower is asked first."""


class ImageServiceSettings(_Section):
    """Of `nixery-snap image-service`, on a node."""

    listen: Annotated[str, AfterValidator(_unix)] = "unix:///run/nixery-snap/image.sock"
    containerd: Annotated[str, AfterValidator(_unix)] = "unix:///run/containerd/containerd.sock"
    snapshotter: str = "nix"
    registries: tuple[str, ...] = ()
    """HOST[:PORT] of registries whose images may name store paths; when empty, every manifest is looked at."""
    certs_directory: str = "/etc/containerd/certs.d"
    """Has containerd's hosts.toml files."""
    group: str = ""
    """Whose members may use the socket."""


class LimitSettings(_Section):
    max_layers: int = Field(default=DEFAULT_MAX_LAYERS, ge=2, le=125)
    """Layers of a classic image, its forest's layer included."""
    packages: PositiveInt = 64
    """Packages that one image name may hold, beside those that its meta-packages stand for."""
    client_images: PositiveInt = 16
    """Images that are being made at a time because one client address asked for them."""
    build_queue: PositiveInt = 256
    """Images whose packages wait for being built or fetched, beyond nix.builds."""
    failure_ttl: float = Field(default=30, ge=0)
    """Seconds for which a failure is answered again without another attempt."""
    memory_cache: int = Field(default=64 * 1024 * 1024, ge=0)
    """Bytes of manifests and small blobs, and again of records, that are kept in memory."""
    shutdown_timeout: float = Field(default=60, ge=0)
    """Seconds that running work is given at shutdown."""


class Settings(_Section):
    """All settings of the program."""

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:8080"
    format: ImageFormat = ImageFormat.CLASSIC
    storage: str = ""
    """Object store: `file:///DIRECTORY` or `memory://`; below the state directory when empty."""
    cache_directory: str = ""
    """For what can be made again (checkouts, HOME of Nix) and for links to keep store paths; when empty, a
    directory of the system for root and of the user for others."""
    source: Annotated[str, AfterValidator(_source)] = "path:/etc/nixery-snap/packages"
    sources: dict[str, SourceSettings] = {}
    """More sources, by names for the log."""
    systems: Annotated[tuple[System, ...], Field(min_length=1)] = ("x86_64-linux", "aarch64-linux")
    """For which images are made; the first is meant where a name says nothing."""
    base_packages: tuple[AttributeText, ...] = ("cacert", "iana-etc")
    """In every image, as far as the package set has them."""
    meta_packages: dict[NamePart, tuple[AttributeText, ...]] = {}
    """More names like `shell`, each standing for a list of packages."""
    popularity: Annotated[str, AfterValidator(_popularity)] = ""
    """A file, or an http or https URL, as `nixery-snap popularity` writes it; decides on classic layers."""
    index: Literal["off", "nix-snapshotter", "all"] = "nix-snapshotter"
    """Which images are answered for all systems at once, as an image index, where a name says no architecture."""
    workers: PositiveInt = 1
    log_format: Literal["json", "console"] = "json"
    access_log: bool = False
    """Log every request, not only those that fail; costs most of the speed of repeated requests."""
    nix: NixSettings = NixSettings()
    substituters: tuple[SubstituterSettings, ...] = (
        SubstituterSettings(
            url="https://cache.nixos.org",
            public_keys=("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",),
        ),
    )
    """Asked by priority, then in this order."""
    substitution: SubstitutionSettings = SubstitutionSettings()
    binary_cache: BinaryCacheSettings = BinaryCacheSettings()
    image_service: ImageServiceSettings = ImageServiceSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.workers > 1 and self.storage.startswith("memory:"):
            raise ValueError(
                "workers: several processes cannot share storage memory://; use file:///DIRECTORY"
            )
        self._check_sources()
        cache, known = self.binary_cache, {substituter.url for substituter in self.substituters}
        if len(known) < len(self.substituters):
            raise ValueError("substituters: a URL stands there twice")
        for key, urls, more in (
            ("client_substituters", cache.client_substituters, {OWN_CACHE}),
            ("upstreams", cache.upstreams, set()),
        ):
            for url in set(urls) - known - more:
                raise ValueError(f"binary_cache.{key}: {url!r} is not the url of one of [[substituters]]")
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
            for key in keys:
                if key in taken:
                    raise ValueError(f"sources.{name}: {key!r} already means {taken[key]}")
                taken[key] = f"sources.{name}"

    @property
    def all_sources(self) -> dict[str, SourceSettings]:
        """By name, the default one among them, each with its spec."""
        default = self.sources.get(DEFAULT_SOURCE, SourceSettings())
        return {**self.sources, DEFAULT_SOURCE: default.model_copy(update={"spec": self.source})}

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

    def cache_url(self, host: str) -> str:
        """Of our own binary cache, as clients are told; `host` is what they call this server."""
        return self.binary_cache.public_url.rstrip("/") or f"http://{host}{CACHE_PREFIX}"

    @property
    def signing_key_path(self) -> Path | None:
        """None: there is no place to keep a key."""
        if self.binary_cache.signing_key_file:
            return Path(self.binary_cache.signing_key_file).absolute()
        parts = urlsplit(self.storage_url)
        if parts.scheme == "memory":
            return None
        state = Path(unquote(parts.path)) if parts.scheme == "file" else _state_directory()
        return state / "secrets/signing-key"

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


def load_settings(
    file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Merge all layers; `flags` are by dotted key, those that are None were not given. Raises SettingsError."""
    merged: dict[str, Any] = {}
    if file is not None:
        try:
            merged = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError("", f"the settings file {file} cannot be read: {error}") from error
    for key, text in nixery_settings(environment).items():
        path = key.split(".")
        _put(merged, path, _from_text(path, text), key)
    for variable, text in sorted(environment.items()):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable != FILE_VARIABLE:
            path = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            _put(merged, path, _from_text(path, text), variable)
    for key, value in flags.items():
        if value is not None:
            _put(merged, key.split("."), value, f"--{key}")
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        unknown = first["type"] == "extra_forbidden"
        reason = "there is no such setting" if unknown else first["msg"].removeprefix("Value error, ")
        raise SettingsError(key, reason) from None


def _put(merged: dict[str, Any], path: list[str], value: Any, origin: str) -> None:
    table = merged
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise SettingsError(origin, f"{part} is not a table")
    table[path[-1]] = value


def _from_text(path: list[str], text: str) -> Any:
    """An environment variable's value: as it is for text settings, else as TOML would read it."""
    field: Any = Settings
    for part in path:
        known = getattr(field, "model_fields", {}).get(part)
        field = known.annotation if known else None
    if field in {str, ImageFormat} or getattr(field, "__origin__", None) is Literal:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # the check of the whole says what is wrong with it


def _state_directory() -> Path:
    return _directory("/var/lib", "XDG_STATE_HOME", ".local/state")


def _directory(system: str, variable: str, default: str) -> Path:
    """The program's directory below the system's for root, else below the user's (XDG base directories)."""
    if os.geteuid() == 0:
        return Path(system, "nixery-snap")
    return Path(os.environ.get(variable) or Path.home() / default, "nixery-snap").absolute()
