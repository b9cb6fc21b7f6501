"""The source `git+URL`: a package set in a git repository.

A tag is looked for in this order: `latest` is HEAD, or what the URL's `ref` or `rev` says; a whole commit is that
commit; then a tag of that name, a branch of that name, and both again with `/` for each `--`; last, seven or more
hexadecimal digits are the one commit here that begins so. So a name that really has `--` in it wins, and a tag
wins over a branch, as in gitrevisions(7).

A commit is served only when a branch or tag leads to it, unless any is to be: forges hand out those of forks, too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cachetools import LRUCache

from nixery_snap.errors import StorageError, TagNotFound
from nixery_snap.ports import PackageSet, Pin
from nixery_snap.sources.checkouts import Checkouts
from nixery_snap.sources.git_command import GitAccess
from nixery_snap.sources.git_mirror import GitMirror
from nixery_snap.sources.git_url import COMMIT, GitUrl, is_ref_name
from nixery_snap.sources.unpack import UnpackLimits

HEAD_TAG: Final = "latest"
TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_REMEMBERED_COMMITS: Final = 4096
_ABBREVIATION: Final = re.compile(r"[0-9a-f]{7,63}")


class GitSource:
    """Implements the port PackageSource. Remembers no pin of a moving tag: see `pinning`."""

    def __init__(
        self,
        url: GitUrl,
        access: GitAccess,
        directory: Path,
        limits: UnpackLimits,
        *,
        submodules: bool = False,
        lfs: bool = False,
        any_commit: bool = False,
    ) -> None:
        """`directory` is ours, for the mirror and the checkouts."""
        self.name = str(url)
        self._url = url
        self._submodules = submodules
        self._mirror = GitMirror(url, access, directory / "git", limits, lfs=lfs)
        self._history = (
            None if any_commit else GitMirror(url, access, directory / "history", limits, lfs=False)
        )
        self._reachable: LRUCache[str, bool] = LRUCache(_REMEMBERED_COMMITS)
        self._checkouts = Checkouts(directory / "checkouts")
        self._lock = asyncio.Lock()

    async def pin(self, tag: str) -> Pin:
        if pin := self.current(tag):
            return pin
        wanted = self._url.default if tag == HEAD_TAG else tag
        if wanted is not None and not is_ref_name(wanted):
            raise TagNotFound(self.name, tag, "no branch or tag can have such a name")
        if COMMIT.fullmatch(tag):
            commit = tag if await self._leads_to(tag) else None
        else:
            commit = await self._mirror.fetch(_refs(wanted))
            if commit is None and _ABBREVIATION.fullmatch(tag):
                commit = await self._mirror.expand(tag)
                commit = commit if commit is not None and await self._leads_to(commit) else None
        if commit is None:
            raise self._not_found(tag)
        self._reachable[commit] = True
        return self._pin(commit)

    def current(self, tag: str) -> Pin | None:
        commit = self._url.default if tag == HEAD_TAG else tag
        if commit is None or not COMMIT.fullmatch(commit):
            return None
        trusted = self._history is None or tag == HEAD_TAG or commit in self._reachable
        return self._pin(commit) if trusted else None

    async def checkout(self, pin: Pin) -> PackageSet:
        commit = pin.revision
        if not COMMIT.fullmatch(commit):
            raise self._not_found(commit)
        found = await self._find(commit)
        if found is None:
            async with self._lock:
                found = await self._find(commit) or await self._check_out(commit)
        return PackageSet(found, pin=pin)

    async def tags(self) -> Sequence[str]:
        names = await self._mirror.refs()
        return await asyncio.to_thread(_tags, names)

    def close(self) -> None:
        self._mirror.close()
        if self._history is not None:
            self._history.close()

    async def _leads_to(self, commit: str) -> bool:
        """Whether a branch or tag does, as far as that matters."""
        return (
            self._history is None or await self._mirror.is_tip(commit) or await self._history.leads_to(commit)
        )

    async def _find(self, commit: str) -> Path | None:
        try:
            return await asyncio.to_thread(self._checkouts.find, commit)
        except OSError as error:
            raise StorageError(f"the checkouts of {self.name} cannot be read: {error}") from error

    async def _check_out(self, commit: str) -> Path:
        try:
            staged = await asyncio.to_thread(self._checkouts.stage)
            try:
                if not await self._mirror.export(commit, staged / "source", submodules=self._submodules):
                    raise self._not_found(commit)
                return await asyncio.to_thread(self._checkouts.keep, staged, commit)
            finally:
                await asyncio.to_thread(self._checkouts.discard, staged)
        except OSError as error:
            raise StorageError(f"{self.name} cannot be checked out: {error}") from error

    def _pin(self, commit: str) -> Pin:
        local = self._url.transport == "file"
        return Pin(commit, None if local else f"git+{self._url.text}?rev={commit}")

    def _not_found(self, tag: str) -> TagNotFound:
        if tag == HEAD_TAG:
            return TagNotFound(self.name, tag, "the repository has no such branch, or no commit yet")
        return TagNotFound(
            self.name,
            tag,
            "use latest, a branch or tag (with -- for each /), or all digits of a commit"
            f"{'' if self._history is None else ' that one of them leads to'}",
        )


def _refs(name: str | None) -> list[str]:
    if name is None:
        return ["HEAD"]
    if name.startswith("refs/"):
        return [name]
    names = dict.fromkeys((name, name.replace("--", "/")))
    return [f"refs/{kind}/{one}" for one in names if is_ref_name(one) for kind in ("tags", "heads")]


def _tags(refs: Sequence[str]) -> list[str]:
    """What to ask for to get each of these refs, as far as a tag can say it."""
    found = {HEAD_TAG}
    for ref in refs:
        name = ref.split("/", 2)[-1]
        tag = name.replace("/", "--")
        if TAG.fullmatch(tag) and tag.replace("--", "/") in {name, name.replace("--", "/")}:
            found.add(tag)
    return sorted(found)
