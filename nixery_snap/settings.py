"""Typed settings: defaults < TOML file < environment < flags. Every default stands here."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from nixery_snap.errors import InvalidFormat, InvalidName, SettingsError
from nixery_snap.imaging.layering import DEFAULT_MAX_LAYERS
from nixery_snap.imaging.request import ARCHITECTURES, ImageFormat
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.oci.reference import check_name

ENVIRONMENT_PREFIX: Final = "NIXERY_SNAP_"
FILE_VARIABLE: Final = "NIXERY_SNAP_CONFIG"  # names the settings file
SHELL_PACKAGES: Final = ("bashInteractive", "coreutils", "moreutils", "nano")


def _attribute_path(text: str) -> str:
    try:
        return str(AttributePath.parse(text))
    except InvalidFormat as error:
        raise ValueError(str(error)) from None


def _source(text: str) -> str:
    kind, _, rest = text.partition(":")
    if kind != "path" or not rest:
        raise ValueError(f"{text!r} is not path:DIRECTORY")
    return f"path:{Path(rest).absolute()}"


def _listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return text


def _meta_name(name: str) -> str:
    try:
        check_name(name)
    except InvalidName as error:
        raise ValueError(str(error)) from None
    if "/" in name or name in {*ARCHITECTURES, *ImageFormat}:
        raise ValueError(f"{name!r} cannot name a meta-package: it has a meaning already")
    return name


AttributeText = Annotated[str, AfterValidator(_attribute_path)]
MetaName = Annotated[str, AfterValidator(_meta_name)]
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
    builds: PositiveInt = 4
    """Images whose packages are built or fetched at a time; each may use as many cores as Nix is told."""
    evaluators: PositiveInt = 2
    """Evaluations at a time."""
    options: dict[str, str] = {}
    """Further settings for Nix, as in nix.conf."""


class LimitSettings(_Section):
    max_layers: int = Field(default=DEFAULT_MAX_LAYERS, ge=2, le=125)
    """Layers of a classic image, its forest's layer included."""
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
    systems: Annotated[tuple[System, ...], Field(min_length=1)] = ("x86_64-linux", "aarch64-linux")
    """For which images are made; the first is meant where a name says nothing."""
    base_packages: tuple[AttributeText, ...] = ("cacert", "iana-etc")
    """In every image, as far as the package set has them."""
    meta_packages: dict[MetaName, tuple[AttributeText, ...]] = {}
    """More names like `shell`, each standing for a list of packages."""
    workers: PositiveInt = 1
    log_format: Literal["json", "console"] = "json"
    access_log: bool = False
    """Log every request, not only those that fail; costs most of the speed of repeated requests."""
    nix: NixSettings = NixSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.workers > 1 and self.storage.startswith("memory:"):
            raise ValueError(
                "workers: several processes cannot share storage memory://; use file:///DIRECTORY"
            )
        return self

    @property
    def storage_url(self) -> str:
        return self.storage or _directory("/var/lib", "XDG_STATE_HOME", ".local/state").as_uri()

    @property
    def cache_path(self) -> Path:
        if self.cache_directory:
            return Path(self.cache_directory).absolute()
        return _directory("/var/cache", "XDG_CACHE_HOME", ".cache")

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


def _directory(system: str, variable: str, default: str) -> Path:
    """The program's directory below the system's for root, else below the user's (XDG base directories)."""
    if os.geteuid() == 0:
        return Path(system, "nixery-snap")
    return Path(os.environ.get(variable) or Path.home() / default, "nixery-snap").absolute()
