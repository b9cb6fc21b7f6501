"""`nixery-snap doctor`: whether everything that the settings name can do its part, tried one by one."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

from rich.filesize import decimal

from nixery_snap.adapters import open_nix, open_objects, open_source_of, open_substituters, read_popularity
from nixery_snap.errors import NixError, NixerySnapError, StorageError
from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.imaging.request import DEFAULT_TAG
from nixery_snap.nix.ground import ground_error
from nixery_snap.nix_stores.builders import RemoteBuilder, parse_builders
from nixery_snap.nix_stores.command import NixCommand
from nixery_snap.nix_stores.signing_key import load_signing_key
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Pin
from nixery_snap.settings import Settings

_LITTLE_SPACE: Final = 0.05  # of a disk
_NO_SUCH_PATH: Final = f"/nix/store/{'0' * 32}-none"
_PATIENCE_SECONDS: Final = 60.0


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """About one thing: `what` it is, and what was found or what to do about it."""

    what: str
    state: State
    detail: str


_Check = Callable[[], Awaitable[str]]
"""What was found. Raises NixerySnapError, OSError, TimeoutError."""


async def examine(settings: Settings, containerd: str | None = None) -> list[Finding]:
    """One finding for each thing, in a fixed order. `containerd`: its address, when it is to be asked too.

    Raises SettingsError where there is nothing to try.
    """
    async with AsyncExitStack() as stack:
        objects = open_objects(settings)
        separate = {name: open_objects(settings, name) for name in sorted(settings.separate_sources)}
        nix = open_nix(settings)
        checks: list[tuple[str, _Check]] = [
            ("Nix", partial(_version, nix)),
            ("Nix store", partial(_store, nix)),
            ("storage", partial(_storage, objects)),
            *((f"storage of {name}", partial(_storage, its)) for name, its in separate.items()),
            ("signing key", partial(_key, settings)),
        ]
        checks += [(f"source {name}", partial(_source, settings, name, nix)) for name in settings.all_sources]
        others = open_substituters(settings, StoredRecords(objects, settings.limits.memory_cache))
        for substituter in others.values():
            stack.push_async_callback(substituter.close)
            checks.append((f"substituter {substituter.url}", partial(_substituter, substituter)))
        builders = await asyncio.to_thread(parse_builders, settings.nix.builders)
        checks += [(f"builder {one.name}", partial(_builder, one, nix)) for one in builders]
        if settings.popularity:
            checks.append(("popularity", partial(_popularity, settings)))
        if containerd is not None:
            checks.append((f"containerd {containerd}", partial(_containerd, containerd)))
        findings = await asyncio.gather(*(_finding(what, check) for what, check in checks))
    nix_directory = nix.store.root / "nix"  # often a file system of its own
    store = nix_directory if nix_directory.exists() else nix.store.root
    roots = {one.root for one in (objects, *separate.values()) if one.root is not None}
    return [*findings, *_disks({settings.cache_path, store, *roots})]


async def _finding(what: str, check: _Check) -> Finding:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            detail = await check()
    except TimeoutError:
        return Finding(what, State.FAILED, f"no answer within {_PATIENCE_SECONDS:g} s")
    except (NixerySnapError, OSError) as error:
        return Finding(what, State.FAILED, str(error))
    return Finding(what, State.OK, detail)


async def _version(nix: NixCommand) -> str:
    return (await nix.run("nix-store", "--version")).stdout.decode().strip()


async def _store(nix: NixCommand) -> str:
    await nix.initialise()
    finished = await nix.run("nix-store", "--check-validity", _NO_SUCH_PATH)
    message = b"".join((finished.stdout, finished.stderr)).decode(errors="replace")
    if error := ground_error(message):
        raise error
    if _NO_SUCH_PATH not in message:  # the answer of a store that works is that it is not valid
        raise NixError(message)
    return nix.store.uri


async def _storage(objects: ObjectStore) -> str:
    """Write, read and remove something."""
    await objects.initialise()
    key, content = f"staging/doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    await objects.put(key, content)
    try:
        if await objects.get(key) != content:
            raise StorageError("what was written is not what is read")
    finally:
        await objects.delete(key)
    return "can be written, read and cleaned"


async def _key(settings: Settings) -> str:
    path = settings.signing_key_path
    if path is None:
        return "a new one at each start, as the storage is in memory"
    if not settings.binary_cache.signing_key_file and not path.exists():
        return f"will be made at the first start, in {path}"
    return str(load_signing_key(path, create=False).public_key)


class _NoPins:
    """Implements the port PinStore: nothing is remembered, so that the source itself is asked."""

    async def get(self, source: str, tag: str) -> None:
        return None

    async def put(self, source: str, tag: str, pin: Pin, made: float) -> None:
        pass

    async def delete(self, source: str, tag: str) -> None:
        pass


async def _source(settings: Settings, name: str, nix: NixCommand) -> str:
    """Pin and evaluate it; without any names only the set itself."""
    source = open_source_of(settings, name, _NoPins())
    try:
        pin = await source.pin(DEFAULT_TAG)
        package_set = await source.checkout(pin)
    finally:
        source.close()
    limits = settings.nix
    evaluator = OneShotEvaluator(nix, limits.eval_timeout, 1, limits.eval_memory_mib)
    await evaluator.evaluate(package_set, settings.systems[0], [])
    return f"{source.name} at revision {pin.revision}"


async def _substituter(substituter: Substituter) -> str:
    return f"answers; priority {await substituter.priority()}"


async def _builder(builder: RemoteBuilder, nix: NixCommand) -> str:
    await builder.ask(nix)
    return f"answers; for {builder.systems}"


async def _popularity(settings: Settings) -> str:
    known = await asyncio.to_thread(read_popularity, settings.popularity)
    return f"of {len(known.counts)} packages"


async def _containerd(address: str) -> str:
    from nixery_snap.image_service.containerd import Containerd  # gRPC takes long to load, and few ask  # noqa: PLC0415

    containerd = Containerd(address)
    try:
        return f"version {(await containerd.version())[0]}"
    finally:
        await containerd.close()


def _disks(directories: set[Path]) -> Iterator[Finding]:
    for directory in sorted(directories):
        try:
            disk = shutil.disk_usage(directory)
        except OSError as error:
            yield Finding(f"disk of {directory}", State.FAILED, str(error))
            continue
        share = disk.free / disk.total
        state = State.WARNING if share < _LITTLE_SPACE else State.OK
        yield Finding(f"disk of {directory}", state, f"{decimal(disk.free)} free, {share:.0%}")
