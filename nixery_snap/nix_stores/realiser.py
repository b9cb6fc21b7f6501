"""Makes store paths exist by `nix-store --realise`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from nixery_snap.errors import RealisationFailed, RealisationTimedOut
from nixery_snap.nix.log_events import LogReader
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import NixRunner, Package, Progress

_DRV: Final = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+\-._?=]+\.drv")
LOG_LINES: Final = 25
_ABORTED_SECONDS: Final = 1.0


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

    async def knows(self, packages: Collection[Package]) -> bool:
        drv_paths = sorted({package.drv_path for package in packages})
        finished = await self._nix.run("nix-store", "--check-validity", *drv_paths)
        return finished.returncode == 0

    async def realise(self, key: str, packages: Collection[Package], progress: Progress) -> None:
        targets = sorted(f"{package.drv_path}!{','.join(package.outputs)}" for package in packages)
        arguments = ("--realise", *targets, "--add-root", str(self._gc_roots / key), "--indirect")
        self._gc_roots.mkdir(parents=True, exist_ok=True)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                log, returncode = await self._run(self._options(), arguments, progress)
                if returncode < 0:
                    # Nix 2.8 can abort when a cache has failed it, instead of building. What it was building
                    # can still be in the way of another, and at last it gets none of our caches.
                    for options in (self._options, dict):
                        await asyncio.sleep(_ABORTED_SECONDS)
                        log, returncode = await self._run(options(), arguments, progress)
                        if returncode == 0:
                            break
        except TimeoutError:
            raise RealisationTimedOut(self._timeout_seconds) from None
        if returncode != 0:
            raise self._failure(log)

    async def _run(
        self, options: Mapping[str, str], arguments: Collection[str], progress: Progress
    ) -> tuple[LogReader, int]:
        log = LogReader(LOG_LINES)

        def feed(line: bytes) -> None:
            if begun := log.feed(line):
                progress(begun)

        chosen = (part for option in options.items() for part in ("--option", *option))
        finished = await self._nix.run("nix-store", *chosen, *arguments, on_stderr=feed)
        return log, finished.returncode

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
        # Without a builder there is no log either: no machine for that system, no disk, …
        began = drv_path in log.build_logs
        lines = tuple(log.build_logs.get(drv_path or "", ()))
        command = f"nix-store --store {self._store_uri} --read-log {drv_path}" if began else ""
        return RealisationFailed(drv_path, reason, lines, command)
