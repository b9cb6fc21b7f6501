"""Narinfos: what a binary cache says of one store path (Nix, src/libstore/nar-info.cc).

The URL, the compression and the file's hash and size are not signed: whoever serves them may change them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.base32 import ALPHABET
from nixery_snap.nix.hashes import sha256_text
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import STORE_DIR, StorePath

MAX_SIZE: Final = 4 << 20  # bytes; the largest in use have some 10,000 references
_MAX_SIGNATURES: Final = 64  # each one under a trusted name costs a verification
_MAX_NUMBER: Final = (1 << 63) - 1
_UNKNOWN_DERIVER: Final = "unknown-deriver"
_ONCE: Final = frozenset({
    "StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "References", "Deriver", "CA"
})  # fmt: skip
_REQUIRED: Final = ("StorePath", "URL", "NarHash", "NarSize", "References")
_MAX_URL: Final = 1024
_URL: Final = re.compile(r"[A-Za-z0-9._~+=,@?&/-]+")
_SHA256: Final = re.compile(f"sha256:[01][{ALPHABET}]{{51}}")
_COMPRESSION: Final = re.compile(r"[a-z0-9]{1,16}")
# As nearly all caches write it. Of these fields all but the store paths are known to be good by then.
_USUAL: Final = re.compile(
    rf"StorePath: {STORE_DIR}/(?P<path>[^/\n]+)\n"
    r"URL: (?P<url>nar/[0-9a-z][0-9A-Za-z._+-]{0,255})\n"
    rf"Compression: (?P<compression>{_COMPRESSION.pattern})\n"
    rf"FileHash: (?P<file_hash>{_SHA256.pattern})\n"
    r"FileSize: (?P<file_size>[1-9][0-9]{0,17})\n"
    rf"NarHash: (?P<nar_hash>{_SHA256.pattern})\n"
    r"NarSize: (?P<nar_size>[1-9][0-9]{0,17})\n"
    r"References: (?P<references>[^\n]*)\n"
    r"(?:Deriver: (?P<deriver>[^\n]+)\n)?"
    rf"(?P<signatures>(?:Sig: [!-~]+\n){{0,{_MAX_SIGNATURES}}})"
    r"(?:CA: (?P<content_address>[!-~]+)\n)?"
)

# A closure names its members again and again: one object for each saves time and memory.
_from_base_name: Final = lru_cache(1 << 14)(StorePath.from_base_name)


@dataclass(frozen=True, slots=True)
class NarInfo:
    """A path info and how to fetch its NAR: `url` is relative to the cache's own.

    `file_hash` is `sha256:<nix base 32>`; it and `file_size` are of the compressed NAR, None where unknown.
    """

    info: PathInfo
    url: str
    compression: str
    file_hash: str | None = None
    file_size: int | None = None

    @classmethod
    def parse(cls, content: bytes, origin: str = "") -> Self:
        """`origin` becomes the path info's. Raises InvalidFormat."""
        text = _text(content)
        if usual := _USUAL.fullmatch(text):
            info = PathInfo(
                _from_base_name(usual["path"]),
                usual["nar_hash"],
                int(usual["nar_size"]),
                _references(usual["references"]),
                _deriver(usual["deriver"]),
                tuple(line.removeprefix("Sig: ") for line in usual["signatures"].splitlines()),
                usual["content_address"],
                origin,
            )
            file_hash, file_size = usual["file_hash"], int(usual["file_size"])
            return cls(info, usual["url"], usual["compression"], file_hash, file_size)
        fields, signatures = _fields(text)
        for key in _REQUIRED:
            if key not in fields:
                raise InvalidFormat("narinfo", _shown(content), f"it has no {key}")
        info = PathInfo(
            _store_path(fields["StorePath"]),
            _sha256(fields["NarHash"]),
            _number("NarSize", fields["NarSize"]),
            _references(fields["References"]),
            _deriver(fields.get("Deriver")),
            tuple(signatures),
            fields.get("CA") or None,
            origin,
        )
        if info.nar_size == 0:
            raise InvalidFormat("narinfo", fields["NarSize"], "no NAR is empty")
        compression = fields.get("Compression") or "bzip2"
        if not _COMPRESSION.fullmatch(compression):
            raise InvalidFormat("narinfo", compression, "this cannot be the name of a compression")
        file_hash = fields.get("FileHash")
        return cls(
            info,
            _relative(fields["URL"]),
            compression,
            _sha256(file_hash) if file_hash else None,
            # Nix takes 0 for unknown, too.
            _number("FileSize", fields.get("FileSize", "0")) or None,
        )

    def __bytes__(self) -> bytes:
        info = self.info
        lines = [f"StorePath: {info.path}", f"URL: {self.url}", f"Compression: {self.compression}"]
        if self.file_hash is not None:
            lines.append(f"FileHash: {self.file_hash}")
        if self.file_size is not None:
            lines.append(f"FileSize: {self.file_size}")
        references = " ".join(sorted(path.base_name for path in info.references))
        lines += [f"NarHash: {info.nar_hash}", f"NarSize: {info.nar_size}", f"References: {references}"]
        if info.deriver is not None:
            lines.append(f"Deriver: {info.deriver.base_name}")
        lines += [f"Sig: {signature}" for signature in info.signatures]
        if info.content_address is not None:
            lines.append(f"CA: {info.content_address}")
        return "\n".join([*lines, ""]).encode()


def _text(content: bytes) -> str:
    if len(content) > MAX_SIZE:
        raise InvalidFormat("narinfo", _shown(content), f"it is larger than {MAX_SIZE} bytes")
    if not content.endswith(b"\n"):
        raise InvalidFormat("narinfo", _shown(content), "its last line has no end, so it may be truncated")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidFormat("narinfo", _shown(content), "it is not UTF-8 text") from None


def _fields(text: str) -> tuple[dict[str, str], list[str]]:
    """What is said once, by key, and the signatures. Keys that are not known are ignored."""
    lines = text.split("\n")
    fields: dict[str, str] = {}
    signatures: list[str] = []
    lines.pop()
    for line in lines:
        key, separator, value = line.partition(":")
        if not separator or value[:1] not in {"", " "}:
            raise InvalidFormat("narinfo", line, "a line must be a key, ':', a blank and a value")
        value = value[1:]
        if key == "Sig":
            signatures.append(value)
        elif key in _ONCE:
            if key in fields:
                raise InvalidFormat("narinfo", line, f"{key} is there twice")
            fields[key] = value
        else:
            continue
        if not value.isprintable():
            raise InvalidFormat("narinfo", line, f"{key} has characters that are not printable")
    if len(signatures) > _MAX_SIGNATURES:
        raise InvalidFormat("narinfo", text[:200], f"it has more than {_MAX_SIGNATURES} signatures")
    return fields, signatures


def _shown(content: bytes) -> bytes:
    """As much as an error needs: an error that outlives its request must not keep all of it."""
    return content[:200]


def _number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _MAX_NUMBER):
        raise InvalidFormat("narinfo", text[:200], f"{key} must be a number of bytes")
    return int(text)


def _store_path(text: str) -> StorePath:
    directory, _, base_name = text.rpartition("/")
    # Mostly some other path has referred to it before.
    return _from_base_name(base_name) if directory == STORE_DIR else StorePath.parse(text)


def _deriver(text: str | None) -> StorePath | None:
    return None if text in {None, "", _UNKNOWN_DERIVER} else _from_base_name(text)


def _sha256(text: str) -> str:
    # In the form that all caches use there is nothing to be made of it: 52 digits with 4 bits of padding.
    return text if _SHA256.fullmatch(text) else sha256_text(text)


def _references(text: str) -> tuple[StorePath, ...]:
    # A base name sorts like its store path, and faster.
    return tuple(map(_from_base_name, sorted(set(text.split(" "))))) if text else ()


def _relative(url: str) -> str:
    """`url`, as long as it cannot lead out of the cache."""
    if len(url) > _MAX_URL:
        raise InvalidFormat("narinfo", url[:200], f"URL is longer than {_MAX_URL} characters")
    if not _URL.fullmatch(url):
        raise InvalidFormat("narinfo", url, "URL must be a relative path of letters, digits and ._~+=,@?&/-")
    parts = url.replace("?", "/").split("/")
    if not parts[0] or ".." in parts or "." in parts or "//" in url:
        raise InvalidFormat("narinfo", url, "URL must be a relative path, without '.', '..' and empty parts")
    return url
