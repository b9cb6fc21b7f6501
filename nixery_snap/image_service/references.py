"""`nix:0/…` references: images of a node without a registry. Port 0 cannot be bound, so nothing else means them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nixery_snap.errors import InvalidFormat, InvalidName
from nixery_snap.imaging.request import DEFAULT_TAG
from nixery_snap.nix.store_path import STORE_DIR, StorePath
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.reference import check_name, check_tag

PREFIX: Final = "nix:0/"
# A leading slash is not legal in a reference.
_STORE_PREFIX: Final = STORE_DIR.lstrip("/") + "/"


@dataclass(frozen=True, slots=True)
class NodeReference:
    """`archive` is the store path that the name means; None for an image name of our grammar."""

    name: str
    tag: str
    digest: Digest | None
    archive: StorePath | None

    @classmethod
    def parse(cls, text: str) -> NodeReference | None:
        """None for what is no such reference. Raises InvalidName, InvalidFormat."""
        if not text.startswith(PREFIX):
            return None
        rest, _, digest = text.removeprefix(PREFIX).partition("@")
        name, _, tag = rest.partition(":")
        check_name(name)
        tag = check_tag(tag or DEFAULT_TAG)
        archive = None
        if name.startswith(_STORE_PREFIX):
            try:
                archive = StorePath.parse(f"/{name}")
            except InvalidFormat as error:
                raise InvalidName(name, error.reason) from error
            if tag != DEFAULT_TAG:
                raise InvalidName(text, f"a store path has no tags but {DEFAULT_TAG}")
        return cls(name, tag, Digest.parse(digest) if digest else None, archive)

    @property
    def stored_name(self) -> str:
        """What containerd makes of it, and so keeps the image under: a digest makes the tag go."""
        return f"{PREFIX}{self.name}" + (f"@{self.digest}" if self.digest else f":{self.tag}")

    def with_digest(self, digest: Digest) -> str:
        return f"{PREFIX}{self.name}@{digest}"
