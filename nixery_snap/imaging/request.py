"""Image names: `[<format>/][<source>/][<meta>/…]<attr>[/<attr>…]`, in OCI's alphabet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from nixery_snap.errors import InvalidFormat, InvalidName, UnsupportedSystem
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.oci import canonical_json
from nixery_snap.oci.compression import Compression
from nixery_snap.oci.reference import check_name, check_tag

ARCHITECTURES: Final = {"amd64": "x86_64-linux", "arm64": "aarch64-linux"}
DEFAULT_TAG: Final = "latest"
DEFAULT_SOURCE: Final = "default"


class ImageFormat(StrEnum):
    CLASSIC = "classic"
    SNAPSHOTTER = "nix-snapshotter"


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What an image name asks for, in normal form: `names` are sorted and unique.

    `shell` says whether the meta-package of that name was asked for: it decides the image's Cmd.
    `any_system`: the name says no architecture, `system` is the default.
    """

    format: ImageFormat
    system: str
    names: tuple[AttributePath, ...]
    shell: bool
    tag: str
    source: str = DEFAULT_SOURCE
    any_system: bool = False
    compression: Compression = Compression.GZIP
    """Of the layers of a classic image; those of a snapshotter image are small, and always gzip."""
    name: str = field(default="", compare=False)
    """As it was written, in the order and without the repeats that make no other image; empty for one that means this
    only on a certain host."""

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


@dataclass(frozen=True, slots=True)
class SourceNames:
    """By which prefix of a name, or else which host it was asked of, a source is meant."""

    prefixes: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)


class NameGrammar:
    """Parses image names; what depends on settings is given once.

    `meta_packages` maps a name to the attribute paths it stands for; `systems` begins with the default.
    """

    def __init__(
        self,
        default_format: ImageFormat,
        systems: tuple[str, ...],
        meta_packages: Mapping[str, tuple[AttributePath, ...]],
        sources: SourceNames = SourceNames(),
        max_packages: int = 64,
        compression: Compression = Compression.GZIP,
    ) -> None:
        self._default_format = default_format
        self.systems = systems
        self._meta_packages = meta_packages
        self._sources = sources
        self._max_packages = max_packages
        self._compression = compression

    def parse(self, name: str, tag: str = DEFAULT_TAG, host: str = "") -> ImageRequest:
        """`host` is what the client called this server, its port included.

        Raises InvalidName, InvalidFormat (the tag) and UnsupportedSystem.
        """
        parts = check_name(name).split("/")
        check_tag(tag)
        written, image_format = list(parts), self._default_format
        if parts[0] in set(ImageFormat):
            image_format = ImageFormat(parts.pop(0))
        source = self._source(parts, host)
        front, metas = written[: len(written) - len(parts)], set()
        system, shell = self.systems[0], False
        names: set[AttributePath] = set()
        implied: set[AttributePath] = set()
        architecture = ""
        while parts and (parts[0] in ARCHITECTURES or parts[0] in self._meta_packages):
            meta = parts.pop(0)
            metas.add(meta)
            if meta in ARCHITECTURES:
                if architecture not in {"", meta}:
                    raise InvalidName(name, f"it asks for both {architecture} and {meta}: name one of them")
                architecture, system = meta, ARCHITECTURES[meta]
            else:
                implied.update(self._meta_packages[meta])
                shell = shell or meta == "shell"
        if system not in self.systems:
            raise UnsupportedSystem(system, self.systems)
        for part in parts:
            if part in ARCHITECTURES or part in self._meta_packages:
                raise InvalidName(name, f"{part} is a meta-package: put it in front of the packages")
            try:
                names.add(AttributePath.parse(part))
            except InvalidFormat as error:
                raise InvalidName(name, error.reason) from error
        if not names | implied:
            raise InvalidName(name, "it names no package; append one, as in shell/git")
        if len(names) > self._max_packages:
            raise InvalidName(
                name, f"it names {len(names)} packages, at most {self._max_packages} are allowed"
            )
        return ImageRequest(
            image_format,
            system,
            tuple(sorted(names | implied)),
            shell,
            tag,
            source,
            any_system=not architecture,
            compression=self._compression if image_format is ImageFormat.CLASSIC else Compression.GZIP,
            name="/".join((*front, *sorted(metas), *sorted(set(parts))))
            if self.source_of(name) == source
            else "",
        )

    def source_of(self, name: str, host: str = "") -> str:
        """The source that `parse` would find, whatever else may be wrong with the name."""
        parts = name.split("/")
        return self._source(parts[1:] if parts[0] in set(ImageFormat) else parts, host)

    def _source(self, parts: list[str], host: str) -> str:
        """Takes its prefix, if there is one, from `parts`."""
        if parts and parts[0] in self._sources.prefixes:
            return self._sources.prefixes[parts.pop(0)]
        return self._sources.hosts.get(_host_name(host), DEFAULT_SOURCE)


def _host_name(host: str) -> str:
    """Without port, in lower case (RFC 9110, section 7.2)."""
    name, _, port = host.rpartition(":")
    return (name if port.isdecimal() else host).lower()
