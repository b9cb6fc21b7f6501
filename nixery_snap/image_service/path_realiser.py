"""Fetches store paths by name, many in one process of Nix."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nixery_snap.errors import PathsNotSubstituted, RealisationTimedOut
from nixery_snap.nix.log_events import LogReader
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.realiser import NixRealiser
from nixery_snap.ports import Progress

# Before Nix 2.16 downloads count as builds, one at a time unless told otherwise; a path by name is never built.
_PARALLEL: Final = {"max-jobs": "32", "http-connections": "64"}
_PATHS_PER_CALL: Final = 10_000  # below the kernel's limit for arguments
_SHOWN_REASONS: Final = 5
_WARNING_LEVEL: Final = 1


@dataclass(slots=True)
class _Reader(LogReader):
    """Substituters that do not answer, and bad signatures, are warnings to Nix."""

    warnings: dict[str, None] = field(default_factory=dict)

    def _event(self, event: dict[str, Any]) -> str | None:
        if event["action"] == "msg" and event["level"] == _WARNING_LEVEL:
            text = str(event.get("raw_msg", event["msg"])).split("\n", 1)[0]
            if "retrying in" not in text:
                self.warnings[text.replace("\x1b[35;1mwarning:\x1b[0m ", "")[:500]] = None
        return super(_Reader, self)._event(event)  # slots: a class that super() alone does not find

    def reasons(self) -> list[str]:
        said = [*self.warnings, *(error.split("\n", 1)[0] for error in self.errors)]
        return list(dict.fromkeys(said)) or list(self.plain) or ["Nix gave no reason"]


class PathRealiser(NixRealiser):
    """Also realises paths of which nothing but their names is known."""

    async def fetch(
        self, link: Path, paths: Collection[StorePath], asked: tuple[str, ...], progress: Progress
    ) -> None:
        """Afterwards all `paths` are there, with links at `link`, `link`-2 … that keep them.

        Raises PathsNotSubstituted, which shows `asked` as the substituters, and RealisationTimedOut.
        """
        wanted = sorted(map(str, paths))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for start in range(0, len(wanted), _PATHS_PER_CALL):
                    some = wanted[start : start + _PATHS_PER_CALL]
                    numbered = link.with_name(f"{link.name}.{start}") if start else link
                    await self._fetch(numbered, some, asked, progress)
        except TimeoutError:
            raise RealisationTimedOut(self._timeout_seconds) from None

    async def _fetch(
        self, link: Path, paths: Sequence[str], asked: tuple[str, ...], progress: Progress
    ) -> None:
        arguments = ("--realise", *paths, "--add-root", str(link), "--indirect")
        for options in (self._options, self._options, dict):
            log = _Reader()
            returncode = await self._attempt({**_PARALLEL, **options()}, arguments, log, progress)
            if returncode >= 0:  # Nix 2.8 can abort when a cache has failed it
                break
        if returncode != 0:
            blamed = [path for path in paths if any(path in error for error in log.errors)]
            # A private store's files lie elsewhere than their names say; nobody but this node cares.
            reason = "; ".join(log.reasons()[:_SHOWN_REASONS]).replace(self._store_uri, "")
            raise PathsNotSubstituted(tuple(blamed or paths), asked, reason)

    async def _attempt(
        self, options: dict[str, str], arguments: Sequence[str], log: _Reader, progress: Progress
    ) -> int:
        def feed(line: bytes) -> None:
            if begun := log.feed(line):
                progress(begun)

        chosen = (part for option in options.items() for part in ("--option", *option))
        finished = await self._nix.run("nix-store", *chosen, *arguments, on_stderr=feed)
        return finished.returncode
