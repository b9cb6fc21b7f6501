"""Nixery's environment variables as settings of this program, for who replaces one by the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nixery_snap.errors import SettingsError

# Nixery needs exactly one of these, so one of them says that its environment is meant.
_SOURCES: Final = {
    "NIXERY_CHANNEL": "channel:{}",
    "NIXERY_PKGS_REPO": "git+{}",
    "NIXERY_PKGS_PATH": "path:{}",
}


def nixery_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """By dotted key; nothing where no package set is named in Nixery's way. Raises SettingsError."""
    named = [variable for variable in _SOURCES if environment.get(variable)]
    if not named:
        return {}
    if len(named) > 1:
        raise SettingsError(named[1], f"{' and '.join(named)} are both set: Nixery takes one package set")
    found = {"source": _SOURCES[named[0]].format(_repository(environment[named[0]]))}
    if port := environment.get("PORT"):
        found["listen"] = f"0.0.0.0:{port}"
    if timeout := environment.get("NIX_TIMEOUT"):
        found["nix.build_timeout"] = timeout
    if url := environment.get("NIX_POPULARITY_URL"):
        found["popularity"] = url
    match environment.get("NIXERY_STORAGE_BACKEND", ""):
        case "":
            pass
        case "filesystem":
            found["storage"] = Path(_needed(environment, "STORAGE_PATH")).absolute().as_uri()
        case "gcs":  # GOOGLE_APPLICATION_CREDENTIALS is read by the object store itself
            found["storage"] = f"gs://{_needed(environment, 'GCS_BUCKET')}"
        case other:
            raise SettingsError("NIXERY_STORAGE_BACKEND", f"{other!r} is neither filesystem nor gcs")
    return found


def _needed(environment: Mapping[str, str], variable: str) -> str:
    if value := environment.get(variable):
        return value
    raise SettingsError(variable, "NIXERY_STORAGE_BACKEND needs it, and it is not set")


def _repository(text: str) -> str:
    """Git also takes `user@host:path`, which is no URL (git-clone(1), "GIT URLS")."""
    user, at, rest = text.partition("@")
    host, colon, path = rest.partition(":")
    if at and colon and "/" not in user + host:
        return f"ssh://{user}@{host}/{path.lstrip('/')}"
    return text
