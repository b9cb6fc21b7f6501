"""Removing what nobody uses: from the object store, and of this machine the links that keep store paths of images."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from nixery_snap import metrics
from nixery_snap.adapters import open_every
from nixery_snap.errors import SettingsError, StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.leases import StoredLeases
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweep import Report, collect, last_sweep, plan
from nixery_snap.ports import Progress
from nixery_snap.settings import Settings

log = structlog.get_logger()

_ROOT: Final = re.compile(r"([0-9a-f]{64})(-.*)?")  # an image's key, and what Nix appends for further paths
_JITTER: Final = 0.1  # of the interval: replicas started together need not all look at once


async def collect_garbage(
    settings: Settings, objects: ObjectStore, progress: Progress, *, dry_run: bool = False
) -> Report:
    """By the settings. Raises SettingsError where they keep everything, StorageError."""
    rules = settings.retention.rules
    if not rules.unused_seconds:
        raise SettingsError(
            "retention.unused", "it is 0, so everything is kept: set it to a number of seconds"
        )
    if dry_run:
        return await plan(objects, rules, progress)
    report = await collect(objects, rules, progress)
    await remove_roots(settings, objects)
    return report


async def stay_tidy(settings: Settings, objects: ObjectStore) -> None:
    """Collect garbage every `retention.interval` until cancelled; of several servers one does it."""
    interval = settings.retention.interval
    if not interval or not settings.retention.unused:
        return
    leases = StoredLeases(objects, settings.object_store.lease)
    while True:
        try:
            last = await last_sweep(objects)
            due = 0.0 if last is None else last + interval - time.time()
            await asyncio.sleep(max(0.0, due) + random.uniform(0, _JITTER) * interval)  # noqa: S311 - no secret
            async with leases.held("gc", lambda line: None):
                if await last_sweep(objects) == last:
                    report = await collect_garbage(settings, objects, lambda line: log.debug("gc", step=line))
                    removed, freed = report.removed.total(), report.removed_bytes.total()
                    metrics.COLLECTED_OBJECTS.inc(removed)
                    metrics.COLLECTED_BYTES.inc(freed)
                    log.info("garbage-collected", objects=removed, bytes=freed)
            await remove_roots(settings, objects)
            if await last_sweep(objects) == last:  # it is too early
                await asyncio.sleep(interval)
        except StorageError as error:
            metrics.COLLECTION_FAILURES.inc()
            log.warning("garbage-not-collected", reason=str(error))
            await asyncio.sleep(interval)


async def remove_roots(settings: Settings, objects: ObjectStore) -> None:
    """Of images that are no longer recorded, whoever removed them. Raises StorageError."""
    # Links come first, when an image is built, and its record last.
    before = time.time() - max(settings.retention.grace, settings.nix.build_timeout)
    try:
        links = await asyncio.to_thread(_links, settings.gc_roots_path, before)
        stores = (objects, *open_every(settings)) if links else ()
        for key, some in links.items():
            if not any([await one.exists(keys.record("image", key)) for one in stores]):
                await asyncio.to_thread(_unlink, some)
                log.info("roots-removed", image=key, links=len(some))
    except OSError as error:
        raise StorageError(f"links to store paths cannot be removed: {error}") from error


def _links(directory: Path, before: float) -> dict[str, list[Path]]:
    """By image key, where all were made before."""
    found: dict[str, list[Path]] = {}
    young = set()
    with suppress(FileNotFoundError):
        for entry in os.scandir(directory):
            if entry.is_symlink() and (match := _ROOT.fullmatch(entry.name)):
                found.setdefault(match[1], []).append(directory / entry.name)
                if entry.stat(follow_symlinks=False).st_mtime >= before:
                    young.add(match[1])
    return {key: links for key, links in found.items() if key not in young}


def _unlink(links: list[Path]) -> None:
    for link in links:
        link.unlink(missing_ok=True)
