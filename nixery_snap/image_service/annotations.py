"""Which store paths an image needs on the node: what the annotations of its layers name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nixery_snap.imaging.assemble import NIX_CLOSURE, NIX_STORE_PATH
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.manifest import Manifest


@dataclass(frozen=True, slots=True)
class NamedPaths:
    """Fetching a closure-info path fetches its closure.

    `spare` are those of layers that name each of their paths too: what a snapshotter before nix-snapshotter 0.3 does
    not look at.
    """

    paths: frozenset[StorePath]
    spare: frozenset[StorePath] = frozenset()

    @classmethod
    def of(cls, manifest: Manifest) -> NamedPaths:
        """Raises InvalidFormat."""
        paths: set[StorePath] = set()
        spare: set[StorePath] = set()
        for layer in manifest.layers:
            named = {
                StorePath.parse(value)
                for key, value in layer.annotations.items()
                if key.startswith(NIX_STORE_PATH)
            }
            closure_info = {
                StorePath.parse(value) for key, value in layer.annotations.items() if key == NIX_CLOSURE
            }
            paths |= named or closure_info
            spare |= closure_info
        return cls(frozenset(paths), frozenset(spare - paths))

    def __iter__(self) -> Iterator[StorePath]:
        yield from self.paths
        yield from self.spare

    def __len__(self) -> int:
        return len(self.paths) + len(self.spare)
