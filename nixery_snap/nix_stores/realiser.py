"""Makes store paths exist by `nix-store --realise`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from nixery_snap.errors import PathsNotSubstituted, RealisationFailed, RealisationTimedOut
from nixery_snap.nix.ground import ground_error
from nixery_snap.nix.log_events import LogReader
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import NixRunner, Package, Progress

_DRV: Final = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+\-._?=]+\.drv")
LOG_LINES: Final = 25
_STUMBLED_SECONDS: Final = 1.0
# The last two are what 2.8, and later releases, say of a daemon that died; systemd starts another.
_TRIPPED: Final = re.compile(
    r"executing SQLite statement|^unexpected end-of-file$|Nix daemon disconnected unexpectedly", re.MULTILINE
)
# Before Nix 2.16 downloads count as builds, one at a time unless told otherwise; a path by name is never built.
_PARALLEL: Final = {"max-jobs": "32", "http-connections": "64"}
_PATHS_PER_CALL: Final = 10_000  # below the kernel's limit for arguments
_SHOWN_REASONS: Final = 5


class NixRealiser:
    """Implements the port Realiser.

    `gc_roots` is the directory for the links that keep an image's paths from the garbage collector;
    `store_uri` is shown in the command by which an operator sees a whole log. `options` are settings of Nix,
    asked for each time.
    """

    def __init__(
        self,
        nix: NixRunner,
        gc_roots: Path,
        store_uri: str,
        timeout_seconds: float,
        options: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._nix = nix
        self._gc_roots = gc_roots
        self._store_uri = store_uri
        self._timeout_seconds = timeout_seconds
        self._options = options

    async def unwritten(self, packages: Collection[Package]) -> list[Package]:
        drv_paths = sorted({package.drv_path for package in packages})
        finished = await self._nix.run("nix-store", "--check-validity", "--print-invalid", *drv_paths)
        invalid = frozenset(finished.stdout.decode().split())
        return [package for package in packages if package.drv_path in invalid]

    async def realise(self, key: str, packages: Collection[Package], progress: Progress) -> None:
        targets = sorted(f"{package.drv_path}!{','.join(package.outputs)}" for package in packages)
        self._gc_roots.mkdir(parents=True, exist_ok=True)
        arguments = ("--realise", *targets, "--add-root", str(self._gc_roots / key), "--indirect")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                log, returncode = await self._persist(arguments, {}, progress)
        except TimeoutError:
            raise RealisationTimedOut(self._timeout_seconds) from None
        if returncode != 0:
            raise self._failure(log)

    async def fetch(
        self, link: Path, paths: Collection[StorePath], asked: tuple[str, ...], progress: Progress
    ) -> None:
        """Realise paths of which nothing but their names is known, with links at `link`, `link`-2 … that keep them.

        Raises PathsNotSubstituted, which shows `asked` as the substituters, NixUnusable and RealisationTimedOut.
        """
        wanted = sorted(map(str, paths))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for start in range(0, len(wanted), _PATHS_PER_CALL):
                    some = wanted[start : start + _PATHS_PER_CALL]
                    numbered = link.with_name(f"{link.name}.{start}") if start else link
                    arguments = ("--realise", *some, "--add-root", str(numbered), "--indirect")
                    log, returncode = await self._persist(arguments, _PARALLEL, progress)
                    if returncode != 0:
                        ground = ground_error("\n".join((*log.warnings, *log.errors, *log.plain)))
                        raise ground or self._not_substituted(log, some, asked)
        except TimeoutError:
            raise RealisationTimedOut(self._timeout_seconds) from None

    async def _persist(
        self, arguments: Collection[str], more: Mapping[str, str], progress: Progress
    ) -> tuple[LogReader, int]:
        """Run nix-store, again where it failed for reasons of its own; its log and exit status."""
        stumbled = False
        # Nix 2.8 can abort when a cache has failed it, and what it was building can still be in the way of the next
        # attempt; at last it gets none of our caches. Several that make Nix's own cache of what binary caches
        # have at the same time can trip over each other.
        for options in (self._options, self._options, dict):
            log = LogReader(LOG_LINES)
            returncode = await self._run({**more, **options()}, arguments, log, progress)
            stumbled = stumbled or returncode < 0 or any(map(_TRIPPED.search, log.errors))
            if returncode == 0 or not stumbled:
                break
            await asyncio.sleep(_STUMBLED_SECONDS)
        return log, returncode

    async def _run(
        self, options: Mapping[str, str], arguments: Collection[str], log: LogReader, progress: Progress
    ) -> int:
        def feed(line: bytes) -> None:
            if begun := log.feed(line):
                progress(begun)

        finished = await self._nix.run("nix-store", *arguments, on_stderr=feed, options=options)
        return finished.returncode

    def _not_substituted(
        self, log: LogReader, paths: Sequence[str], asked: tuple[str, ...]
    ) -> PathsNotSubstituted:
        blamed = [path for path in paths if any(path in error for error in log.errors)]
        said = [
            *(warning for warning in log.warnings if "retrying in" not in warning),
            *(error.split("\n", 1)[0] for error in log.errors),
        ]
        reasons = list(dict.fromkeys(said)) or list(log.plain) or ["Nix gave no reason"]
        # A private store's files lie elsewhere than their names say; nobody but this node cares.
        reason = "; ".join(reasons[:_SHOWN_REASONS]).replace(self._store_uri, "")
        return PathsNotSubstituted(tuple(blamed or paths), asked, reason)

    def _failure(self, log: LogReader) -> RealisationFailed:
        """The first error names the derivation that failed; later ones those that depend on it."""
        first, *later = log.errors or ["\n".join(log.plain) or "Nix gave no reason"]
        # A private store's files lie elsewhere than their names say; nobody but the server cares.
        reason = first.split("\n", 1)[0].rstrip(";:").replace(self._store_uri, "")
        named = _DRV.search(reason)
        drv_path = named[0] if named else None
        dependents = sorted({match[0] for error in later for match in _DRV.finditer(error)} - {drv_path})
        if dependents:
            reason += f"; needed by {', '.join(StorePath.parse(path).name.removesuffix('.drv') for path in dependents)}"
        if log.machines:
            reason += f"; no build on {'; '.join(list(log.machines)[:_SHOWN_REASONS])}"
        # Without a builder there is no log either: no machine for that system, no disk, …
        began = drv_path in log.build_logs
        lines = tuple(log.build_logs.get(drv_path or "", ()))
        command = f"nix-store --store {self._store_uri} --read-log {drv_path}" if began else ""
        return RealisationFailed(drv_path, reason, lines, command)
