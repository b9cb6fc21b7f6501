"""Typed settings."""

from nixery_snap.settings.loading import FILE_VARIABLE, load_settings
from nixery_snap.settings.masking import shown_settings
from nixery_snap.settings.model import CACHE_PREFIX, OWN_CACHE, Settings
from nixery_snap.settings.sections import NixSettings, SourceSettings, SubstituterSettings
from nixery_snap.settings.values import masked

__all__ = [
    "CACHE_PREFIX",
    "FILE_VARIABLE",
    "OWN_CACHE",
    "NixSettings",
    "Settings",
    "SourceSettings",
    "SubstituterSettings",
    "load_settings",
    "masked",
    "shown_settings",
]
