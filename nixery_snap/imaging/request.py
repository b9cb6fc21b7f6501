"""Image names: `[<format>/][<meta>/…]<attr>[/<attr>…]`, in OCI's alphabet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nixery_snap.errors import InvalidFormat, InvalidName, UnsupportedSystem
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.oci import canonical_json
from nixery_snap.oci.reference import check_name, check_tag

ARCHITECTURES: Final = {"amd64": "x86_64-linux", "arm64": "aarch64-linux"}
DEFAULT_TAG: Final = "latest"


class ImageFormat(StrEnum):
    CLASSIC = "classic"
    SNAPSHOTTER = "nix-snapshotter"


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What an image name asks for, in normal form: `names` are sorted and unique.

    `shell` says whether the meta-package of that name was asked for: it decides the image's Cmd.
    """

    format: ImageFormat
    system: str
    names: tuple[AttributePath, ...]
    shell: bool
    tag: str

    @property
    def architecture(self) -> str:
        """OCI's (Go's) word for the system's CPU."""
        return next(architecture for architecture, system in ARCHITECTURES.items() if system == self.system)

    @property
    def title(self) -> str:
        return ", ".join(map(str, self.names))


def cache_key(*parts: object) -> str:
    """A key for everything made from `parts` (JSON values): hex of a digest."""
    return hashlib.sha256(canonical_json.encode(parts)).hexdigest()


class NameGrammar:
    """Parses image names; what depends on settings is given once.

    `meta_packages` maps a name to the attribute paths it stands for; `systems` begins with the default.
    """

    def __init__(
        self,
        default_format: ImageFormat,
        systems: tuple[str, ...],
        meta_packages: Mapping[str, tuple[AttributePath, ...]],
    ) -> None:
        self._default_format = default_format
        self._systems = systems
        self._meta_packages = meta_packages

    def parse(self, name: str, tag: str = DEFAULT_TAG) -> ImageRequest:
        """Raises InvalidName, InvalidFormat (the tag) and UnsupportedSystem."""
        parts = check_name(name).split("/")
        check_tag(tag)
        image_format = self._default_format
        if parts[0] in set(ImageFormat):
            image_format = ImageFormat(parts.pop(0))
        system, shell = self._systems[0], False
        names: set[AttributePath] = set()
        architecture = ""
        while parts and (parts[0] in ARCHITECTURES or parts[0] in self._meta_packages):
            meta = parts.pop(0)
            if meta in ARCHITECTURES:
                if architecture not in {"", meta}:
                    raise InvalidName(name, f"it asks for both {architecture} and {meta}: name one of them")
                architecture, system = meta, ARCHITECTURES[meta]
            else:
                names.update(self._meta_packages[meta])
                shell = shell or meta == "shell"
        if system not in self._systems:
            raise UnsupportedSystem(system, self._systems)
        for part in parts:
            if part in ARCHITECTURES or part in self._meta_packages:
                raise InvalidName(name, f"{part} is a meta-package: put it in front of the packages")
            try:
                names.add(AttributePath.parse(part))
            except InvalidFormat as error:
                raise InvalidName(name, error.reason) from error
        if not names:
            raise InvalidName(name, "it names no package; append one, as in shell/git")
        return ImageRequest(image_format, system, tuple(sorted(names)), shell, tag)
