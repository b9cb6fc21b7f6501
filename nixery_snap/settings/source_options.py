"""Which options a kind of source has a use for: one that would do nothing is a mistake that nobody notices."""

from __future__ import annotations

from typing import Final

from nixery_snap.settings.sections import SourceSettings
from nixery_snap.sources.flake import parse_flake

_ALL: Final = {"spec", "prefix", "hosts", "separate", "restricted", "allow_import_from_derivation"}
_FETCHED: Final = {"pin_ttl", "pin_stale", "fetch_timeout"}
_GIT: Final = _FETCHED | {"commits", "submodules", "lfs"}
_WEB: Final = {"token_file", "netrc_file"}
_NO_FLAKE: Final = {"overlays", "nixpkgs_config"}
_USED: Final = {
    "path": set[str](),
    "git+file": _GIT,
    "git+http": _GIT | _WEB,
    "git+https": _GIT | _WEB,
    "git+ssh": _GIT | {"ssh_key_file", "ssh_known_hosts_file"},
    "channel": _FETCHED | _WEB | {"channels", "channels_url", "commits_url"},
    "tarball": _FETCHED | _WEB,
}


def useless_options(source: SourceSettings) -> list[str]:
    """Those that are set and have no meaning for its kind; none where the kind itself is not understood."""
    inner, more = source.spec, _NO_FLAKE
    if source.spec.startswith("flake:"):
        reference = source.spec.removeprefix("flake:")
        try:
            inner = parse_flake(reference, source.github_url)[0]
        except ValueError:
            return []
        more = {"github_url"} if reference.startswith("github:") else set()
    used = _USED.get(inner.partition(":")[0])
    return [] if used is None else sorted(source.model_fields_set - _ALL - used - more)
