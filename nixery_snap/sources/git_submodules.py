"""What a commit says of its submodules (gitmodules(5))."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nixery_snap.errors import SourceError
from nixery_snap.sources.git_url import COMMIT, GitUrl


@dataclass(frozen=True, slots=True)
class Submodule:
    path: str
    url: str
    commit: str


def parse_submodules(
    settings: str, commits: Mapping[str, str], parent_url: str, transport: str
) -> list[Submodule]:
    """From .gitmodules as `git config --null --list` prints it, and the commits of the tree by path.

    A submodule may only be fetched by the source's own `transport`. Raises SourceError.
    """
    paths: dict[str, str] = {}
    urls: dict[str, str] = {}
    for record in settings.split("\0"):
        key, _, value = record.partition("\n")
        name, _, variable = key.removeprefix("submodule.").rpartition(".")
        if variable == "path":
            paths[value.strip("/")] = name
        elif variable == "url":
            urls[name] = value
    found = []
    for path, commit in sorted(commits.items()):
        url = urls.get(paths.get(path, ""))
        if url is None or not COMMIT.fullmatch(commit):
            raise SourceError(f"its submodule {path!r} is not in .gitmodules")
        found.append(Submodule(path, _resolved(url, parent_url, transport), commit))
    return found


def _resolved(url: str, parent_url: str, transport: str) -> str:
    if url.startswith(("./", "../")):
        base = parent_url.rstrip("/")
        while url.startswith(("./", "../")):
            if url.startswith("../"):
                base = base.rpartition("/")[0]
            url = url.partition("/")[2]
        url = f"{base}/{url}"
    elif (short := re.fullmatch(r"([\w.-]+@)?([\w.-]+):(?!//)/?(.+)", url)) is not None:
        url = f"ssh://{short[1] or ''}{short[2]}/{short[3]}"
    elif url.startswith("/"):
        url = f"file://{url}"
    try:
        parsed = GitUrl.parse(f"git+{url}")
    except ValueError as error:
        raise SourceError(f"the URL of a submodule is not understood: {error}") from None
    if parsed.transport != transport:
        raise SourceError(
            f"its submodule {parsed.text} would be fetched by {parsed.transport}, the source itself is by {transport}"
        )
    return parsed.text
