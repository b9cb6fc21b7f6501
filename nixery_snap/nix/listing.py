"""Listings, `<hash part>.ls` of a binary cache: the file tree of a NAR as JSON (Nix, src/libstore/nar-accessor.cc)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.file_tree import (
    MAX_DEPTH,
    Directory,
    Node,
    Regular,
    Symlink,
    name_defect,
    target_defect,
)  # fmt: skip

MAX_SIZE: Final = 16 << 20  # bytes, some 200,000 files; parsed it takes up to 25 times as much memory
_VERSION: Final = 1
# Its JSON was sorted from Nix 2.4 on, and is put together in another order by ours.
_DIRECTORY: Final = (
    (b'{"version":1,"root":{"type":"directory","entries":{', b"}}}"),
    (b'{"root":{"type":"directory","entries":{', b'}},"version":1}'),
    (b'{"root":{"entries":{', b'},"type":"directory"},"version":1}'),
)
_MAX_FILE_SIZE: Final = (1 << 63) - 1


def parse(content: bytes) -> Node:
    """From the JSON as it is after decompression; raises InvalidFormat."""
    if len(content) > MAX_SIZE:
        raise InvalidFormat("listing", content[:200], f"it is larger than {MAX_SIZE} bytes")
    try:
        # Nix puts names into it as they are, whatever their encoding.
        value = json.loads(content.decode("utf-8", "surrogateescape"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise InvalidFormat("listing", content[:200], "it is nested too deep") from None
    except ValueError as error:
        raise InvalidFormat("listing", content[:200], f"it is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise InvalidFormat("listing", content[:200], "it must be an object")
    if type(value.get("version")) is not int or value["version"] != _VERSION:
        raise InvalidFormat("listing", content[:200], f"its version must be {_VERSION}")
    return _node(value.get("root"), "", 0)


def root(content: bytes) -> Node:
    """The node at the root, a directory without its entries: these are not even read where Nix wrote them.

    Raises InvalidFormat, also for one that breaks off before its last byte.
    """
    if any(content.startswith(begin) and content.endswith(end) for begin, end in _DIRECTORY):
        return Directory()
    tree = parse(content)
    return Directory() if isinstance(tree, Directory) else tree


def encode(tree: Node, offsets: Mapping[bytes, int]) -> bytes:
    """Compact JSON; `offsets` has the place in the NAR of each regular file's content, as `nar.write` gives it."""
    value = {"root": _to_json(tree, b"", offsets, 0), "version": _VERSION}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidFormat("listing", twice[:200], "it is there twice")
    return found


def _node(value: Any, name: str, depth: int) -> Node:
    """`name` is that of the last directory entry on the way, for errors."""
    if not isinstance(value, dict):
        raise InvalidFormat("listing", name, "a file system object must be a JSON object")
    match value.get("type"):
        case "regular":
            size_bytes, executable = value.get("size"), value.get("executable", False)
            if type(size_bytes) is not int or not 0 <= size_bytes <= _MAX_FILE_SIZE:
                raise InvalidFormat("listing", name, "size must be a number of bytes")
            if type(executable) is not bool:
                raise InvalidFormat("listing", name, "executable must be true or false")
            return Regular(size_bytes, executable)
        case "symlink":
            target = value.get("target")
            if not isinstance(target, str):
                raise InvalidFormat("listing", name, "target must be a text")
            if defect := target_defect(_bytes(target, name)):
                raise InvalidFormat("listing", name, defect)
            return Symlink(target)
        case "directory":
            if depth > MAX_DEPTH:
                raise InvalidFormat("listing", name, f"directories are nested deeper than {MAX_DEPTH}")
            return Directory(_entries(value.get("entries"), name, depth))
        case _:
            raise InvalidFormat("listing", name, "its type must be regular, symlink or directory")


def _entries(value: Any, name: str, depth: int) -> dict[str, Node]:
    if not isinstance(value, dict):
        raise InvalidFormat("listing", name, "entries must be a JSON object")
    found: list[tuple[bytes, str, Node]] = []
    for child, node in value.items():
        encoded = _bytes(child, child)
        if defect := name_defect(encoded):
            raise InvalidFormat("listing", child[:300], defect)
        found.append((encoded, child, _node(node, child, depth + 1)))
    # Names are different in bytes as they are in text, so nodes are never compared.
    found.sort()
    return {child: node for _, child, node in found}


def _bytes(text: str, name: str) -> bytes:
    if text.isascii():
        return text.encode()
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        encoded = b""
    # Surrogates that stand for valid UTF-8 would make two texts of one name.
    if os.fsdecode(encoded) != text:
        raise InvalidFormat("listing", name[:300], "it holds surrogates that stand for no bytes")
    return encoded


def _to_json(node: Node, name: bytes, offsets: Mapping[bytes, int], depth: int) -> dict[str, Any]:
    match node:
        case Regular(size_bytes, executable):
            value: dict[str, Any] = {"type": "regular", "size": size_bytes}
            if executable:
                value["executable"] = True
            if name in offsets:
                value["narOffset"] = offsets[name]
            return value
        case Symlink(target):
            return {"type": "symlink", "target": target}
        case Directory(entries):
            if depth > MAX_DEPTH:
                raise InvalidFormat("listing", name, f"directories are nested deeper than {MAX_DEPTH}")
            prefix = name + b"/" if name else b""
            children = {
                child: _to_json(entry, prefix + os.fsencode(child), offsets, depth + 1)
                for child, entry in entries.items()
            }
            return {"type": "directory", "entries": children}
