"""Makes a package source from what the settings say of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nixery_snap.errors import SettingsError
from nixery_snap.ports import PackageSource, PinStore
from nixery_snap.sources.channel import NAME, ChannelSource
from nixery_snap.sources.download import WebAccess, WebUrl
from nixery_snap.sources.flake import parse_flake
from nixery_snap.sources.git import GitSource
from nixery_snap.sources.git_command import GitAccess
from nixery_snap.sources.git_url import GitUrl
from nixery_snap.sources.path import PathSource
from nixery_snap.sources.pinning import Pinned
from nixery_snap.sources.tarball import TarballSource
from nixery_snap.sources.unpack import UnpackLimits
from nixery_snap.sources.variant import Additions, VariantSource, read_overlays

_KNOWN = "path:DIR, git+https://…, git+http://…, git+ssh://…, git+file:///…, channel:NAME, tarball:URL or flake:REF"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the settings say of a source beside its spec. Files are paths; their contents are never logged."""

    cache_directory: Path
    """For mirrors, checkouts and copies, which can all be made again."""
    key: str = "source"
    """The source's dotted path in the settings, for messages."""
    pin_ttl_seconds: float = 300
    pin_stale_seconds: float = 86400
    overlays: tuple[Path, ...] = ()
    nixpkgs_config: Mapping[str, Any] = field(default_factory=dict)
    allows_builds: bool = False
    restricted: bool = False
    commits: Literal["reachable", "any"] = "reachable"
    """Of git: those that a branch or tag leads to, or whatever the remote hands out."""
    submodules: bool = False
    lfs: bool = False
    token_file: Path | None = None
    netrc_file: Path | None = None
    ssh_key_file: Path | None = None
    ssh_known_hosts_file: Path | None = None
    fetch_timeout_seconds: float = 600
    fetch_max_bytes: int = 1024**3
    """Of a downloaded archive."""
    unpack_max_bytes: int = 4 * 1024**3
    """Of a checkout."""
    channels: tuple[str, ...] = ()
    """Which other channels may be asked for by tag."""
    channels_url: str = "https://channels.nixos.org"
    commits_url: str = "https://github.com/NixOS/nixpkgs/archive"
    github_url: str = "https://github.com"


def open_source(spec: str, options: SourceOptions, pins: PinStore) -> PackageSource:
    """The source of `spec`; whoever opened it closes it. Raises SettingsError, StorageError."""
    inner, directory = spec, ""
    if is_flake := spec.startswith("flake:"):
        try:
            inner, directory = parse_flake(spec.removeprefix("flake:"), options.github_url)
        except ValueError as error:
            raise SettingsError(options.key, f"the flake reference is not understood: {error}") from None
    source = _plain(inner, options, pins)
    additions = Additions(
        read_overlays(options.overlays, options.key),
        options.nixpkgs_config,
        options.allows_builds,
        options.restricted,
        is_flake,
        directory,
        {"submodules": options.submodules, "lfs": options.lfs} if inner.startswith("git+") else {},
    )
    if not additions.variant:
        return source
    name = f"flake:{source.name}" if is_flake else source.name
    return VariantSource(name, source, additions, options.cache_directory / "overlays")


def _plain(spec: str, options: SourceOptions, pins: PinStore) -> PackageSource:
    kind, _, rest = spec.partition(":")
    try:
        if kind == "path":
            return _path(rest, options)
        if kind.startswith("git+"):
            source: PackageSource = _git(GitUrl.parse(spec), options)
        elif kind == "channel":
            source = _channel(rest, options)
        elif kind == "tarball":
            url = WebUrl.parse(rest)
            directory = _directory(options, f"tarball:{url.text}")
            source = TarballSource(url, _web(options), directory, _limits(options))
        else:
            raise ValueError(f"it must be {_KNOWN}")
    except ValueError as error:
        raise SettingsError(options.key, f"the source is not understood: {error}") from None
    return Pinned(source, pins, options.pin_ttl_seconds, options.pin_stale_seconds)


def _path(text: str, options: SourceOptions) -> PackageSource:
    if not text:
        raise ValueError("it must be path:DIR")
    directory = Path(text).absolute()
    if not directory.is_dir():
        raise SettingsError(
            options.key, f"there is no directory {directory}; name one that holds a package set"
        )
    return PathSource(directory, options.cache_directory / "checkouts")


def _git(url: GitUrl, options: SourceOptions) -> PackageSource:
    for program, wanted in (("git", True), ("git-lfs", options.lfs), ("ssh", url.transport == "ssh")):
        if wanted and shutil.which(program) is None:
            raise SettingsError(
                options.key, f"{program} was not found, which {url} needs: install it or put it on PATH"
            )
    access = GitAccess(
        options.token_file,
        options.netrc_file,
        options.ssh_key_file,
        options.ssh_known_hosts_file,
        options.fetch_timeout_seconds,
    )
    flags = f"{options.submodules} {options.lfs}"
    return GitSource(
        url,
        access,
        _directory(options, f"git+{url.text} {flags}"),
        _limits(options),
        submodules=options.submodules,
        lfs=options.lfs,
        any_commit=options.commits == "any",
    )


def _channel(name: str, options: SourceOptions) -> PackageSource:
    for one in (name, *options.channels):
        if not NAME.fullmatch(one):
            raise ValueError(f"{one!r} is no name of a channel")
    channels, commits = WebUrl.parse(options.channels_url), WebUrl.parse(options.commits_url)
    directory = _directory(options, f"channel {channels.text} {commits.text}")
    return ChannelSource(
        name, options.channels, channels, commits, _web(options), directory, _limits(options)
    )


def _web(options: SourceOptions) -> WebAccess:
    return WebAccess(
        options.token_file, options.netrc_file, options.fetch_timeout_seconds, options.fetch_max_bytes
    )


def _limits(options: SourceOptions) -> UnpackLimits:
    return UnpackLimits(options.unpack_max_bytes)


def _directory(options: SourceOptions, identity: str) -> Path:
    """One for each repository or URL, whatever credentials it is read with."""
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return options.cache_directory / "sources" / digest[:32]
