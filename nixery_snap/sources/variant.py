"""What the settings add to a package set: overlays, nixpkgs' config, a flake's directory, permission to build."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from nixery_snap.errors import SettingsError, StorageError, TagNotFound
from nixery_snap.ports import PackageSet, PackageSource, Pin

_MAX_OVERLAY_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Additions:
    """`flags` are whatever else makes the same revision another package set, by name.

    `overlays` are contents of files, not their names: what is evaluated is what the variant stands for.
    """

    overlays: tuple[bytes, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    allows_builds: bool = False
    restricted: bool = False
    is_flake: bool = False
    directory: str = ""
    flags: Mapping[str, bool] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """See Pin; the same on all replicas with the same settings."""
        said: dict[str, Any] = {
            "overlays": [_digest(content) for content in self.overlays],
            "config": dict(self.config),
            "allows_builds": self.allows_builds,
            "restricted": self.restricted,
            "is_flake": self.is_flake,
            "directory": self.directory,
            **{name: value for name, value in self.flags.items() if value},
        }
        added = {name: value for name, value in said.items() if value}
        return _digest(json.dumps(added, sort_keys=True).encode()) if added else ""


def read_overlays(files: Sequence[Path], key: str) -> tuple[bytes, ...]:
    """Their contents. Raises SettingsError for the setting `key`."""
    contents = []
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SettingsError(key, f"the overlay {file} cannot be read: {error.strerror}") from error
        if len(content) > _MAX_OVERLAY_BYTES:
            raise SettingsError(key, f"the overlay {file} is larger than {_MAX_OVERLAY_BYTES} bytes")
        contents.append(content)
    return tuple(contents)


class VariantSource:
    """Implements the port PackageSource: `source` with additions. `directory` is ours, for copies of overlays."""

    def __init__(self, name: str, source: PackageSource, additions: Additions, directory: Path) -> None:
        self.name = name
        self._source = source
        self._additions = additions
        self._variant = additions.variant
        self._directory = directory

    async def pin(self, tag: str) -> Pin:
        return self._varied(await self._source.pin(tag))

    def current(self, tag: str) -> Pin | None:
        pin = self._source.current(tag)
        return None if pin is None else self._varied(pin)

    async def checkout(self, pin: Pin) -> PackageSet:
        if pin.variant != self._variant:
            raise TagNotFound(self.name, pin.revision, "the settings of the source have changed; use latest")
        found = await self._source.checkout(replace(pin, variant=""))
        wanted = self._additions
        directory = found.directory / wanted.directory
        if wanted.is_flake and not await asyncio.to_thread((directory / "flake.nix").is_file):
            where = f"directory {wanted.directory!r} of that" if wanted.directory else "that"
            raise TagNotFound(self.name, pin.revision, f"the {where} revision has no flake.nix")
        overlays = await asyncio.to_thread(self._snapshots)
        return PackageSet(
            directory,
            wanted.is_flake,
            overlays,
            wanted.config,
            wanted.allows_builds,
            wanted.restricted,
            pin,
        )

    async def tags(self) -> Sequence[str]:
        return await self._source.tags()

    def close(self) -> None:
        self._source.close()

    def _varied(self, pin: Pin) -> Pin:
        return Pin(pin.revision, pin.url, self._variant)

    def _snapshots(self) -> tuple[Path, ...]:
        """Files with exactly the overlays' contents, made again when somebody has cleaned up."""
        found = []
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for content in self._additions.overlays:
                path = self._directory / f"{_digest(content)}.nix"
                if not path.is_file():
                    handle, new = tempfile.mkstemp(prefix=".new-", dir=self._directory)
                    with os.fdopen(handle, "wb") as file:
                        file.write(content)
                    Path(new).replace(path)
                found.append(path)
        except OSError as error:
            raise StorageError(f"the overlays of {self.name} cannot be copied: {error}") from error
        return tuple(found)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
