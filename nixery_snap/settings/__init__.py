"""Typed settings."""

from nixery_snap.settings.loading import FILE_VARIABLE, load_settings
from nixery_snap.settings.model import CACHE_PREFIX, OWN_CACHE, Settings
from nixery_snap.settings.sections import NixSettings, SourceSettings, SubstituterSettings

__all__ = [
    "CACHE_PREFIX",
    "FILE_VARIABLE",
    "OWN_CACHE",
    "NixSettings",
    "Settings",
    "SourceSettings",
    "SubstituterSettings",
    "load_settings",
]
