"""The tables of a settings file, with every default."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt

from nixery_snap.imaging.layering import DEFAULT_MAX_LAYERS
from nixery_snap.settings.values import (
    CacheUrl,
    HostName,
    ListenAddress,
    NamePart,
    PublicKeyText,
    SourceSpec,
    UnixAddress,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NixSettings(Section):
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


class SourceSettings(Section):
    """A package set: the default one, called `default`, or another beside it."""

    spec: SourceSpec | Literal[""] = ""
    """Where it is, as in `source`, which says it for the default one."""
    prefix: NamePart | Literal[""] = ""
    """Names that begin with it mean this source, behind the format."""
    hosts: tuple[HostName, ...] = ()
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


class SubstituterSettings(Section):
    """A binary cache that paths are taken from."""

    url: CacheUrl
    public_keys: tuple[PublicKeyText, ...] = ()
    priority: int | None = None
    """Lower is asked first; the cache's own when absent."""


class SubstitutionSettings(Section):
    concurrency: PositiveInt = 64
    """Requests at a time to each substituter."""
    request_timeout: float = Field(default=15, gt=0)
    """Seconds for one narinfo or listing, and between two pieces of a NAR."""
    nar_timeout: float = Field(default=3600, gt=0)
    """Seconds for one NAR."""
    negative_ttl: float = Field(default=60, ge=0)
    """Seconds for which it is remembered that a substituter does not have a path."""


class BinaryCacheSettings(Section):
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


class ImageServiceSettings(Section):
    """Of `nixery-snap image-service`, on a node."""

    listen: UnixAddress = "unix:///run/nixery-snap/image.sock"
    containerd: UnixAddress = "unix:///run/containerd/containerd.sock"
    snapshotter: str = "nix"
    registries: tuple[str, ...] = ()
    """HOST[:PORT] of registries whose images may name store paths; when empty, every manifest is looked at."""
    certs_directory: str = "/etc/containerd/certs.d"
    """Has containerd's hosts.toml files."""
    group: str = ""
    """Whose members may use the socket."""


class LimitSettings(Section):
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


class MetricsSettings(Section):
    listen: ListenAddress | Literal[""] = ""
    """HOST:PORT where /metrics is served, of the registry or the image service; nowhere when empty."""
