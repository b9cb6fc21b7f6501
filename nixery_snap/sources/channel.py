"""The source `channel:NAME`: a release of nixpkgs as its channel server has it.

`<channels>/<name>` redirects to the directory of a release, with `git-revision` and `nixexprs.tar.xz`. The redirect
is followed once for each pin, and everything else is taken from where it led: a channel that moves meanwhile cannot
give one release's revision to another's content. The pin is nixpkgs' commit, and what a release directory has no
more, or never had, is fetched as that commit's archive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nixery_snap.errors import SourceError, TagNotFound
from nixery_snap.ports import PackageSet, Pin
from nixery_snap.sources.archives import Archives
from nixery_snap.sources.download import Downloads, NotThere, WebAccess, WebUrl
from nixery_snap.sources.unpack import UnpackLimits

_HEAD_TAG: Final = "latest"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}")
_REVISION_FILE: Final = "git-revision"
_ARCHIVE: Final = "nixexprs.tar.xz"


class ChannelSource:
    """Implements the port PackageSource. Remembers no pin of a moving tag: see `pinning`."""

    def __init__(
        self,
        channel: str,
        others: Sequence[str],
        channels: WebUrl,
        commits: WebUrl,
        access: WebAccess,
        directory: Path,
        limits: UnpackLimits,
    ) -> None:
        """`others` may be asked for by tag; `<commits>/<commit>.tar.gz` is an archive. `directory` is ours."""
        self.name = f"channel:{channel} at {channels.name}"
        self._channel = channel
        self._known = frozenset((channel, *others))
        self._channels = channels.text.rstrip("/")
        self._commits = commits.text.rstrip("/")
        self._releases = Downloads(channels, access)
        self._archived = Downloads(commits, access)
        self._archives = Archives(self.name, directory, limits)

    async def pin(self, tag: str) -> Pin:
        if pin := self.current(tag):
            return pin
        channel = self._channel if tag == _HEAD_TAG else tag
        if channel not in self._known:
            raise self._not_found(tag)
        asked = f"{self._channels}/{channel}/{_REVISION_FILE}"
        try:
            content, found = await self._releases.small(asked)
        except NotThere:
            raise TagNotFound(self.name, tag, f"there is no channel {channel} at its server") from None
        return Pin(_revision(content, found), found.partition("?")[0].removesuffix(f"/{_REVISION_FILE}"))

    def current(self, tag: str) -> Pin | None:
        return Pin(tag, self._commit_url(tag)) if _COMMIT.fullmatch(tag) else None

    async def checkout(self, pin: Pin) -> PackageSet:
        if not _COMMIT.fullmatch(pin.revision):
            raise self._not_found(pin.revision)
        found = await self._archives.find(pin.revision)
        if found is None:
            async with self._archives.once():
                if await self._archives.find(pin.revision) is None:
                    await self._fetch(pin)
                found = await self._archives.find(pin.revision)
        if found is None:
            raise SourceError(
                f"{self.name}: the checkout of {pin.revision} is gone already; is the disk full?"
            )
        return PackageSet(found, pin=pin)

    async def tags(self) -> Sequence[str]:
        return sorted({_HEAD_TAG, *self._known})

    def close(self) -> None:
        pass

    async def _fetch(self, pin: Pin) -> None:
        if pin.url is not None and pin.url != self._commit_url(pin.revision):
            release = pin.url
            try:
                if await self._archives.make(
                    lambda target: self._from_release(release, pin.revision, target)
                ):
                    return
            except NotThere:
                pass  # servers do not keep their releases for ever

        async def archived(target: Path) -> str:
            await self._archived.file(self._commit_url(pin.revision), target)
            return pin.revision

        try:
            await self._archives.make(archived)
        except NotThere:
            raise self._not_found(pin.revision) from None

    async def _from_release(self, release: str, revision: str, target: Path) -> str | None:
        await self._releases.file(f"{release}/{_ARCHIVE}", target)
        # A server without redirects may have moved on between the two questions.
        content, found = await self._releases.small(f"{release}/{_REVISION_FILE}")
        return revision if _revision(content, found) == revision else None

    def _commit_url(self, commit: str) -> str:
        return f"{self._commits}/{commit}.tar.gz"

    def _not_found(self, tag: str) -> TagNotFound:
        known = ", ".join(sorted(self._known))
        return TagNotFound(
            self.name, tag, f"use latest, one of {known}, or all 40 digits of a nixpkgs commit"
        )


def _revision(content: bytes, url: str) -> str:
    text = content.decode("ascii", "replace").strip()
    if not _COMMIT.fullmatch(text):
        raise SourceError(f"what is at {url.partition('?')[0]} is no commit")
    return text
