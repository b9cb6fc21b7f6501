"""Brings the layers of settings together: defaults < TOML file < Nixery's environment < ours < flags."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from nixery_snap.drop_in import nixery_settings
from nixery_snap.errors import SettingsError
from nixery_snap.imaging.request import ImageFormat
from nixery_snap.settings.model import Settings

ENVIRONMENT_PREFIX: Final = "NIXERY_SNAP_"
FILE_VARIABLE: Final = "NIXERY_SNAP_CONFIG"  # names the settings file


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
