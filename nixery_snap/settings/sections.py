"""The tables of a settings file, with every default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt

from nixery_snap.imaging.layering import DEFAULT_MAX_LAYERS
from nixery_snap.object_store.sweep import Rules
from nixery_snap.settings.values import (
    CacheUrl,
    HostName,
    HttpUrl,
    IssuerUrl,
    ListenAddress,
    NamePart,
    PublicKeyText,
    SourceSpec,
    UnixAddress,
)

# None that is symmetric: such a key would be the issuer's and ours.
TokenAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
IssuerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NixSettings(Section):
    """How Nix is run."""

    store: str = "auto"
    """`auto`, `daemon`, or a directory for a private (chroot) store, which needs no daemon."""
    build_timeout: float = Field(default=3600, gt=0)
    """Seconds until a build is given up."""
    wait_timeout: float = Field(default=60, gt=0)
    """Seconds until a client is told to come back; the work goes on."""
    eval_timeout: float = Field(default=60, gt=0)
    """Seconds for one evaluation."""
    eval_memory_mib: PositiveInt = 4096
    """MiB of address space of one evaluator, some 550 of them never used; above half of it in use, it is ended after
    the request."""
    builds: PositiveInt = 4
    """Images whose packages are built or fetched at a time; each may use as many cores as Nix is told."""
    evaluators: PositiveInt = 2
    """Evaluators that stay at a time, and evaluations of one client at a time; as many more may run to explain
    failures."""
    builders: str = ""
    """Machines that build for us and other systems, as in nix.conf; the page on installation says how."""
    options: dict[str, str] = {}
    """Further settings for Nix by name, as in nix.conf."""


class SourceSettings(Section):
    """A package set: the default one, called `default`, or another beside it. The page on sources says more. An option
    that the kind of source has no use for is refused."""

    spec: SourceSpec | Literal[""] = ""
    """Where it is, as in `source`, which says it for the default one."""
    prefix: NamePart | Literal[""] = ""
    """`registry/PREFIX/hello` means this source; it stands behind the format."""
    hosts: tuple[HostName, ...] = ()
    """Clients that call this server by one of these names mean this source."""
    separate: bool = False
    """Keep its images and store paths apart, so that they are found by no other name, not even by digest or hash; its
    binary cache then is at `/nix-cache-of/NAME`."""
    overlays: tuple[str, ...] = ()
    """Files with overlays, for package sets that take `overlays` as nixpkgs does."""
    nixpkgs_config: dict[str, JsonValue] = {}
    """For package sets that take `config`: `allowUnfree`, `permittedInsecurePackages` …"""
    restricted: bool | None = None
    """Whether evaluation may read nothing but the source (Nix's restrict-eval); when absent, for all but `path:`."""
    allow_import_from_derivation: bool = False
    """Whether evaluation may build."""
    pin_ttl: float = Field(default=300, ge=0)
    """Seconds for which the revision of a moving tag is not looked for again."""
    pin_stale: float = Field(default=86400, ge=0)
    """Seconds beyond `pin_ttl` for which the old revision is served while the new one is looked for."""
    channels: tuple[str, ...] = ()
    """Other channels that may be asked for as tags."""
    commits: Literal["reachable", "any"] = "reachable"
    """Of git sources: which commits may be asked for, those that a branch or tag leads to, or `any` that the remote
    hands out."""
    submodules: bool = False
    """Of git sources: with their submodules."""
    lfs: bool = False
    """Of git sources: with the files that are kept elsewhere (Git LFS)."""
    token_file: str = ""
    """A file with an access token for HTTPS."""
    netrc_file: str = ""
    """A file with passwords by host for HTTPS."""
    ssh_key_file: str = ""
    """A key for git over SSH, beside those of ssh-agent."""
    ssh_known_hosts_file: str = ""
    """Against which host keys are checked; when empty, the user's own."""
    fetch_timeout: float = Field(default=600, gt=0)
    """Seconds for one fetch."""
    channels_url: str = "https://channels.nixos.org"
    """Where channels are looked for; for mirrors."""
    commits_url: str = "https://github.com/NixOS/nixpkgs/archive"
    """Where `COMMIT.tar.gz` of each commit of nixpkgs lies; for mirrors."""
    github_url: str = "https://github.com"
    """What `github:` flakes are fetched from; for mirrors."""


class SubstituterSettings(Section):
    """A binary cache that paths are taken from."""

    url: CacheUrl
    """Where it is; for `s3://BUCKET` with `?region=`, `endpoint=`, `scheme=`, `skip_signature=`."""
    public_keys: tuple[PublicKeyText, ...] = ()
    """Whose signatures make its paths trusted."""
    priority: int | None = None
    """Lower is asked first; the cache's own when absent."""


class SubstitutionSettings(Section):
    """How substituters are asked."""

    concurrency: PositiveInt = 64
    """Requests at a time to each substituter."""
    request_timeout: float = Field(default=15, gt=0)
    """Seconds for one narinfo or listing, and between two pieces of a NAR."""
    nar_timeout: float = Field(default=3600, gt=0)
    """Seconds for one NAR."""
    negative_ttl: float = Field(default=60, ge=0)
    """Seconds for which it is remembered that a substituter does not have a path, or has a bad one."""


class ObjectStoreSettings(Section):
    """How the [object store](storage.md) that `storage` names is used."""

    delivery: Literal["redirect", "proxy"] = "redirect"
    """How clients get blobs and NARs of a bucket: from there, by signed URLs, or through this server."""
    url_lifetime: float = Field(default=1200, ge=1, le=604800)
    """Seconds for which a signed URL can be used; vendors allow a week at most."""
    timeout: float = Field(default=30, gt=0)
    """Seconds for which its server may say nothing, and within which a request that fails is tried again."""
    lease: float = Field(default=20, ge=1)
    """Seconds after which work of another process that gives no sign of life is begun anew."""


class BinaryCacheSettings(Section):
    """Our own binary cache."""

    enabled: bool = True
    """Whether it is served, below `/nix-cache/`."""
    publish: Literal["missing", "all", "off"] = "missing"
    """What of an image's closure is put into it: what no other cache of the clients has, all, or nothing."""
    signing_key_file: str = ""
    """As `nix key generate-secret` makes it, mode 0600; when empty, `secrets/signing-key` below the storage directory,
    made at the first start."""
    public_url: str = ""
    """The URL of `/nix-cache` that clients are told; when empty, from the request or `listen`."""
    client_substituters: tuple[str, ...] = ()
    """Whom clients fetch from: URLs of `substituters`, and `own` for our cache; when empty, all of these."""
    annotations: Literal["auto", "both", "legacy", "closure"] = "auto"
    """How a snapshotter image names its paths: one by one (`legacy`), by one closure-info path (`closure`), or
    `both`; `auto` is `both` where clients use our cache."""
    upstreams: tuple[str, ...] = ()
    """URLs of `substituters` that our cache reads through: it fetches, checks, keeps and serves what it lacks. While
    none of them answers, clients get a 503 and not a plain no. There is no limit of size: whoever may use the cache can
    fill it, and `[retention]` removes what nobody asks for."""
    priority: int = Field(default=30, ge=0)
    """Told to clients in `nix-cache-info`; they ask lower ones first."""


class ImageServiceSettings(Section):
    """Of `nixery-snap image-service`, on a node."""

    listen: UnixAddress = "unix:///run/nixery-snap/image.sock"
    """Its socket, mode 0660."""
    containerd: UnixAddress = "unix:///run/containerd/containerd.sock"
    """The node's containerd."""
    snapshotter: str = "nix"
    """Which of containerd's snapshotters unpacks `nix:0/…` images."""
    registries: tuple[str, ...] = ()
    """HOST[:PORT] of registries whose images may name store paths; when empty, every manifest is looked at."""
    certs_directory: str = "/etc/containerd/certs.d"
    """Where containerd's `hosts.toml` files are."""
    group: str = ""
    """A group whose members may use the socket."""


class IssuerSettings(Section):
    """One whose JWTs are taken, such as an OpenID provider."""

    url: IssuerUrl
    """What its tokens call it (`iss`), and where `.well-known/openid-configuration` is found."""
    audience: Annotated[str, Field(min_length=1)]
    """What its tokens call this server (`aud`)."""
    algorithms: Annotated[tuple[TokenAlgorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    """How its tokens may be signed."""
    user_claim: str = "sub"
    """The claim that says who somebody is; rules know him as `NAME:VALUE`, with the issuer's name."""


class RuleSettings(Section):
    """Who may have what. Something is allowed when a rule allows it and none denies it; in patterns `*` stands for
    anything."""

    effect: Literal["allow", "deny"] = "allow"
    """What follows when all of the rule fits."""
    users: Annotated[tuple[str, ...], Field(min_length=1)]
    """Patterns of names: `*` for everybody who logs in; `anonymous` for those who do not."""
    claims: dict[str, tuple[str, ...]] = {}
    """Claims of an issuer's token, each with the values of which it must have one."""
    actions: Annotated[tuple[Literal["pull", "fetch", "search"], ...], Field(min_length=1)] = (
        "pull",
        "fetch",
        "search",
    )
    """Images, store paths from the binary cache, looking for packages."""
    sources: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    """Patterns of names in `sources`."""
    packages: Annotated[tuple[str, ...], Field(min_length=1)] = ("**",)
    """Patterns of attribute paths: `*` within a name, `**` across dots. What is denied has all that is in it."""
    tags: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    """Patterns of tags."""


class AuthSettings(Section):
    """Who may have what; for everybody everything, unless one of htpasswd_file, issuers and rules is given."""

    htpasswd_file: str = ""
    """Users with bcrypt hashes, as `htpasswd -B` writes it; read again when it changes."""
    issuers: dict[IssuerName, IssuerSettings] = Field(default={})
    """Those whose JWTs are taken, by names for rules."""
    rules: tuple[RuleSettings, ...] = ()
    """Who may have what; when empty, those who log in may have everything, and nobody else."""
    tokens: bool = False
    """Ask clients for tokens of our own (the Docker token protocol), which they get at /token."""
    token_key_file: str = ""
    """As `binary_cache.signing_key_file`, but another key; when empty, `secrets/token-key` below the storage directory.
    Replicas need the same one."""
    token_ttl: int = Field(default=300, ge=60, le=3600)
    """Seconds for which such a token is good."""
    token_url: str = ""
    """The URL of `/token` that clients are told; when empty, from the request."""
    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]+$")] = "nixery-snap"
    """What this server is called in tokens of its own."""

    @property
    def knows_users(self) -> bool:
        return bool(self.htpasswd_file or self.issuers)

    @property
    def is_on(self) -> bool:
        return self.knows_users or bool(self.rules)


class TlsSettings(Section):
    """HTTPS, without a proxy in front."""

    certificate_file: str = ""
    """PEM, with the chain; both files are read again when they change."""
    key_file: str = ""
    """PEM, without a passphrase."""


class LimitSettings(Section):
    """What keeps one client, or one image, from taking everything."""

    max_layers: int = Field(default=DEFAULT_MAX_LAYERS, ge=2, le=125)
    """Layers of a classic image, its forest's layer included."""
    packages: PositiveInt = 64
    """Packages that one image name may hold, beside those that its meta-packages stand for."""
    client_images: PositiveInt = 16
    """Images being made, and tags being looked for, at a time for one client: a user, or else an address (an IPv6 /64);
    see `trusted_proxies`."""
    client_new_images: int = Field(default=0, ge=0)
    """Images, and tags looked for, that are begun within an hour because one client asked; 0 for any number."""
    client_failures: int = Field(default=30, ge=0)
    """Logins from one client address that may fail within a minute before none is looked at; 0 for any number."""
    build_queue: PositiveInt = 256
    """Images waiting for a turn beyond `nix.builds`; those that a client still waits for come first."""
    failure_ttl: float = Field(default=30, ge=0)
    """Seconds for which a failure is answered again without another attempt."""
    memory_cache: int = Field(default=64 * 1024 * 1024, ge=0)
    """Bytes of manifests and small blobs kept in memory; as many again of records, and of finished answers."""
    url_bytes: PositiveInt = 8190
    """Bytes of a request's URL, else 414."""
    header_bytes: int = Field(default=32 * 1024, ge=1024, le=256 * 1024)
    """Bytes of a request's whole head, else 431; more than 128 lines are 431 too."""
    body_bytes: int = Field(default=64 * 1024, ge=0)
    """Bytes of a request's body, else 413."""
    request_timeout: float = Field(default=10, gt=0)
    """Seconds in which a request's head must come once its first byte has, else 408; and again its body; and a TLS
    handshake."""
    idle_timeout: float = Field(default=300, gt=0)
    """Seconds after which a connection is closed on which nothing is asked; more than a reverse proxy keeps its own."""
    stall_timeout: float = Field(default=60, gt=0)
    """Seconds after which a client is cut off that reads nothing of its answer."""
    client_connections: PositiveInt = 4096
    """Connections of one client address (of IPv6, one /64 network) at a time, else 429; for each worker. Those of
    `trusted_proxies` are not counted. All clients together have a third of the open files that the system allows."""
    connection_requests: PositiveInt = 100_000
    """Requests on one connection, which is closed after them."""
    shutdown_timeout: float = Field(default=60, ge=0)
    """Seconds that running work is given at shutdown; then whoever waits for it gets a 503 with `Retry-After`."""


class TracingSettings(Section):
    """Traces by OpenTelemetry."""

    endpoint: HttpUrl | Literal[""] = ""
    """An OTLP receiver over HTTP that traces are sent to, such as `http://collector:4318/v1/traces`; nowhere when
    empty. Needs the extra `tracing`."""


class MetricsSettings(Section):
    """What Prometheus reads; the page on monitoring says more."""

    listen: ListenAddress | Literal[""] = ""
    """Where `/metrics` is served, by `serve` or `image-service`; nowhere when empty. There is no authentication:
    choose an address that only Prometheus reaches."""


class RetentionSettings(Section):
    """What is removed from the object store, all in seconds; the same for all servers and commands of one store."""

    unused: float = Field(default=0, ge=0)
    """Since its last use; 0: nothing is removed."""
    grace: float = Field(default=600, ge=1)
    """Between finding out what is unused and removing it."""
    interval: float = Field(default=86400, ge=0)
    """Between two times that servers do it by themselves; 0: only `nixery-snap gc` does."""

    @property
    def rules(self) -> Rules:
        return Rules(
            self.unused, self.grace, self.noted_seconds + self.flush_seconds, min(30, self.grace / 2)
        )

    @property
    def noted_seconds(self) -> float:
        """For which a use, once written down, is not again."""
        return min(86400, self.unused / 4)

    @property
    def flush_seconds(self) -> float:
        """Between two journals of uses."""
        return min(3600, self.unused / 8)
