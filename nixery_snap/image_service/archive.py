"""Image archives: OCI layouts and Docker's, looked into before they are handed to containerd."""

from __future__ import annotations

import gzip
import json
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from nixery_snap.errors import InvalidArchive, InvalidFormat
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import MAX_MANIFEST_BYTES, Manifest
from nixery_snap.oci.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

_MAX_ENTRIES: Final = 4096  # images stop at 127 layers
_MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
_MAX_HEADER_BYTES: Final = 64 * 1024  # a name that goes into an extended header
_GZIP_MAGIC: Final = b"\x1f\x8b"
_BLOBS: Final = "blobs/sha256/"
_INDEXES: Final = frozenset({OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
_MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_EXTENDED: Final = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
    | {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """`digest` and `manifest` are None for Docker's own form, whose images have no annotations."""

    digest: Digest | None
    manifest: Manifest | None


def look_into(path: Path, shown: str, architecture: str) -> ArchivedImage:
    """The image for `architecture` in the archive. Blocking; raises InvalidArchive, which calls it `shown`."""
    try:
        with _opened(path) as archive:
            files = _small_files(archive)
        return _image(files, architecture)
    except (tarfile.TarError, zlib.error, EOFError, *_MALFORMED) as error:
        raise InvalidArchive(shown, str(error) or type(error).__name__) from error
    except (OSError, InvalidFormat) as error:
        raise InvalidArchive(shown, str(error)) from error


class _Member(tarfile.TarInfo):
    """Refuses extended headers that would be read into memory whatever their size."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc] # typeshed leaves it out
        return member


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        source: IO[bytes] = gzip.GzipFile(fileobj=file) if is_gzip else file  # type: ignore[assignment] # it reads
        with tarfile.open(fileobj=source, mode="r|" if is_gzip else "r:", tarinfo=_Member) as archive:
            yield archive


def _small_files(archive: tarfile.TarFile) -> dict[str, bytes]:
    """What can be an index, a manifest or a config, by name; everything in the archive is checked."""
    files: dict[str, bytes] = {}
    kept = 0
    for number, member in enumerate(archive):
        if number >= _MAX_ENTRIES:
            raise ValueError(f"it has more than {_MAX_ENTRIES} entries")
        name = posixpath.normpath(member.name)
        if name.startswith(("/", "../")) or name == "..":
            raise ValueError(f"it has an entry outside of itself: {member.name[:200]!r}")
        if member.issym():
            # Docker's own form has links between layers.
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            if target.startswith(("/", "../")):
                raise ValueError(f"it has a link that leads out of it: {name[:200]!r}")
        elif not (member.isreg() or member.isdir()):
            raise ValueError(f"it has an entry that is neither a file nor a directory: {name[:200]!r}")
        if not member.isreg() or member.size > MAX_MANIFEST_BYTES or not _can_be_json(name):
            continue
        kept += member.size
        if kept > _MAX_KEPT_BYTES:
            raise ValueError("it has too many small files")
        content = archive.extractfile(member)
        files[name] = content.read() if content else b""
    return files


def _can_be_json(name: str) -> bool:
    return name in {"index.json", "manifest.json"} or name.startswith(_BLOBS)


def _image(files: dict[str, bytes], architecture: str) -> ArchivedImage:
    if "index.json" not in files:
        if not isinstance(json.loads(files.get("manifest.json", b"null")), list):
            raise ValueError("it has neither index.json (OCI) nor a manifest.json that is a list (Docker)")
        return ArchivedImage(None, None)
    entry = _chosen(json.loads(files["index.json"]), architecture)
    if entry.get("mediaType") in _INDEXES:
        entry = _chosen(json.loads(_blob(files, Digest.parse(entry["digest"]))), architecture)
    if entry.get("mediaType", OCI_MANIFEST) not in _MANIFESTS:
        raise ValueError(f"its manifest is of the unknown type {str(entry['mediaType'])[:100]!r}")
    digest = Digest.parse(entry["digest"])
    return ArchivedImage(digest, Manifest.parse(_blob(files, digest)))


def _chosen(index: Any, architecture: str) -> dict[str, Any]:
    entries = [entry for entry in index["manifests"] if isinstance(entry, dict)]
    fitting = [
        e for e in entries if (e.get("platform") or {}).get("architecture", architecture) == architecture
    ]
    if not fitting:
        raise ValueError(f"it has no image for {architecture}")
    return fitting[0]


def _blob(files: dict[str, bytes], digest: Digest) -> bytes:
    content = files.get(f"{_BLOBS}{digest.hex}")
    if content is None:
        raise ValueError(f"it does not have {digest}, which it names, or that is too large")
    if Digest.of(content) != digest:
        raise ValueError(f"what it has as {digest} is something else")
    return content
