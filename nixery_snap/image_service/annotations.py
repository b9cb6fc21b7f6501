"""Which store paths an image needs on the node: what the annotations of its layers name."""

from __future__ import annotations

from nixery_snap.imaging.assemble import NIX_CLOSURE, NIX_STORE_PATH
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.manifest import Manifest


def store_paths(manifest: Manifest) -> tuple[StorePath, ...]:
    """Every path that is named, closure-info paths too: fetching one of these fetches its closure.

    Sorted, each once. Raises InvalidFormat.
    """
    return tuple(
        sorted(
            {
                StorePath.parse(value)
                for layer in manifest.layers
                for key, value in layer.annotations.items()
                if key == NIX_CLOSURE or key.startswith(NIX_STORE_PATH)
            }
        )
    )
