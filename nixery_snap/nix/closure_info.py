"""Closure-info paths: a directory whose one file lists a closure, which it also refers to (nix-snapshotter 0.3 on).

Such a path is content-addressed, so it is trusted without a signature, and fetching it fetches the closure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

from nixery_snap.nix import nar
from nixery_snap.nix.content_address import ContentAddress, Method, store_path
from nixery_snap.nix.file_tree import Directory, FileEntry, Regular
from nixery_snap.nix.hashes import Hash
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath

_NAME: Final = "closure-info"
_FILE: Final = b"store-paths"


def closure_info(closure: Iterable[StorePath]) -> tuple[PathInfo, bytes]:
    """The path info, and the content of its file: one store path a line, sorted."""
    references = tuple(sorted(closure))
    content = "".join(f"{path}\n" for path in references).encode()
    nar_hash, nar_size = hashlib.sha256(), 0
    for chunk in nar.write(closure_info_entries(content)):
        nar_hash.update(chunk)
        nar_size += len(chunk)
    address = ContentAddress(Method.NAR, Hash("sha256", nar_hash.digest()))
    path = store_path(_NAME, address, references)
    return PathInfo(path, str(address.hash), nar_size, references, content_address=str(address)), content


def closure_info_entries(content: bytes) -> Iterator[FileEntry]:
    """Its file tree."""
    yield FileEntry(b"", Directory(), iter(()))
    yield FileEntry(_FILE, Regular(len(content)), iter((content,)))
