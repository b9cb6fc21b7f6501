"""The source `flake:REF`: where the flake of a reference is, said as another source, and its directory there.

Of the forms of `nix flake` these are understood: `path:DIR`, `git+URL`, `tarball+URL` or the URL of an archive, and
`github:OWNER/REPOSITORY[/REF]`, each with `?dir=`.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

_GITHUB: Final = re.compile(r"github:([A-Za-z0-9][A-Za-z0-9-]*)/([A-Za-z0-9_.][A-Za-z0-9_.-]*)(?:/([^?#]+))?")
_ARCHIVE: Final = re.compile(r"\.(tar(\.(gz|xz|zst|bz2))?|tgz|txz)$")


def parse_flake(reference: str, github_url: str) -> tuple[str, str]:
    """The spec of the source that has the flake, and its relative directory there, empty for the top.

    Raises ValueError with a reason that holds nothing of the reference.
    """
    if "#" in reference:
        raise ValueError("packages are chosen by image names: leave out the # part")
    parts = urlsplit(reference)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    directory = _directory([value for key, value in parameters if key == "dir"])
    rest = urlencode([item for item in parameters if item[0] != "dir"], safe="/")
    plain = reference.partition("?")[0] + (f"?{rest}" if rest else "")
    if parts.scheme == "path":
        if rest:
            raise ValueError("of a path's parameters only dir is known")
        return f"path:{parts.path}", directory
    if parts.scheme.startswith("git+"):
        return plain, directory
    if parts.scheme in {"http", "https"} and _ARCHIVE.search(parts.path):
        return f"tarball:{plain}", directory
    if parts.scheme in {"tarball+http", "tarball+https"}:
        return f"tarball:{plain.removeprefix('tarball+')}", directory
    if (github := _GITHUB.fullmatch(reference.partition("?")[0])) is not None:
        owner, repository, ref = github.groups()
        if ref is not None:
            whole = re.fullmatch(r"[0-9a-f]{40}", ref)
            rest = urlencode({"rev" if whole else "ref": ref}, safe="/")
        return f"git+{github_url.rstrip('/')}/{owner}/{repository}.git{f'?{rest}' if rest else ''}", directory
    raise ValueError("use path:DIR, git+https://…, github:OWNER/REPOSITORY or the https:// URL of a .tar.gz")


def _directory(values: list[str]) -> str:
    if not values:
        return ""
    parts = [part for part in values[0].split("/") if part not in {"", "."}]
    if len(values) > 1 or ".." in parts or "\0" in values[0]:
        raise ValueError("dir must name one directory below the top")
    return "/".join(parts)
