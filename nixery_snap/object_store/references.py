"""What objects name: the one place that knows, for those who remove, check and copy objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from nixery_snap.errors import InvalidDigest, InvalidFormat
from nixery_snap.nix.store_path import STORE_DIR, StorePath
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.index import Index
from nixery_snap.oci.manifest import Descriptor, Manifest

# Records that name blobs or store paths, but for `image`; all others stand for themselves.
LAYER_KINDS: Final = ("layer", "member")
INDEX_KINDS: Final = ("index", "index-part")
# What is found out again when it is needed, and costs little in comparison with what it led to.
MEMO_KINDS: Final = ("resolution", "package", "narinfo", "roots", "root", "tree")
KINDS: Final = ("image", *LAYER_KINDS, "recipe", *INDEX_KINDS, *MEMO_KINDS)
CLOSURE_INFO: Final = "closure-info"  # the name of store paths that list closures


@dataclass(frozen=True, slots=True)
class Part:
    """A blob that is named; `size_bytes` and `end` are what it must have, or have at least, where that is said."""

    digest: Digest
    size_bytes: int | None = None
    end: int = 0


@dataclass(frozen=True, slots=True)
class Named:
    """By a manifest or an index: `manifests` of an index, `paths` in the annotations of layers."""

    parts: tuple[Part, ...] = ()
    manifests: tuple[Part, ...] = ()
    paths: tuple[StorePath, ...] = ()


def may_be_manifest(beginning: bytes) -> bool:
    return beginning.startswith(b"{")


def of_manifest(content: bytes) -> Named | None:
    """None for what is neither a manifest nor an index."""
    try:
        manifest = Manifest.parse(content)
    except InvalidFormat:
        try:
            return Named(manifests=tuple(map(_part, Index.parse(content).manifests.values())))
        except InvalidFormat:
            return None
    parts = tuple(map(_part, (manifest.config, *manifest.layers)))
    return Named(parts, paths=tuple(path for layer in manifest.layers for path in _annotated(layer)))


def of_record(kind: str, value: Any) -> tuple[Part, ...]:
    """The blobs that a record names. Raises InvalidFormat."""
    try:
        match kind:
            case "image":
                return (Part(Digest.parse(value["manifest"])),)
            case "layer":
                return (Part(Digest.parse(value["digest"]), int(value["size"])),)
            case "member":
                return (Part(Digest.parse(value["blob"]), end=int(value["start"]) + int(value["size"])),)
            case "index-part":
                return (Part(Digest.parse(value["blob"])),)
            case "index":
                texts = [value["catalogue"], *(text for level in value["levels"] for _, text in level)]
                return tuple(Part(Digest.parse(text)) for text in texts)
            case _:
                return ()
    except (LookupError, TypeError, ValueError, InvalidDigest) as error:
        raise InvalidFormat(f"{kind} record", str(value)[:200], repr(error)) from error


def of_image(value: Any) -> tuple[StorePath, ...]:
    """The closure of an image record. Raises InvalidFormat."""
    try:
        return tuple(StorePath.parse(path) for path, _ in value["closure"])
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidFormat("image record", str(value)[:200], repr(error)) from error


def kind_and_key(name: str) -> tuple[str, str] | None:
    """Of a record's object; None for what is no record of a known kind."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "records" or parts[1] not in KINDS or not parts[3].endswith(".json"):
        return None
    return parts[1], parts[3].removesuffix(".json")


def digest_of(name: str) -> Digest | None:
    """Of a blob's object; None for what is no blob."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "blobs":
        return None
    try:
        return Digest.parse(f"{parts[1]}:{parts[3]}")
    except InvalidFormat:
        return None


def parsed(content: bytes) -> Any:
    """JSON of a record, None for what is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _part(descriptor: Descriptor) -> Part:
    return Part(descriptor.digest, descriptor.size_bytes)


def _annotated(layer: Descriptor) -> Iterator[StorePath]:
    for value in layer.annotations.values():
        if value.startswith(STORE_DIR):
            try:
                yield StorePath.parse(value)
            except InvalidFormat:
                continue
