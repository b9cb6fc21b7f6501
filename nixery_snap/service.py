"""The composition root: the only place that constructs adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nixery_snap.errors import SettingsError
from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.imaging.assemble import Assembler
from nixery_snap.imaging.layers import LayerMaker
from nixery_snap.imaging.pipeline import Pipeline, Steps
from nixery_snap.imaging.request import NameGrammar
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.nix_stores.local_store import StoreDatabase, StoreFiles
from nixery_snap.nix_stores.path_info_command import LocalPathInfos, NixPathInfos
from nixery_snap.nix_stores.realiser import NixRealiser
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import BlobStore, PackageSource
from nixery_snap.settings import Settings
from nixery_snap.sources.path import PathSource


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that makes images, wired; what the registry and the commands build upon."""

    settings: Settings
    grammar: NameGrammar
    pipeline: Pipeline
    blobs: BlobStore


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """Raises SettingsError, NixError."""
    store = NixStore.parse(settings.nix.store)
    cache = settings.cache_path
    home, gc_roots = cache / "home", cache / "gcroots"
    try:
        for directory in (home, gc_roots):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError("cache_directory", f"{cache} cannot be used: {error.strerror}") from error
    nix = NixCommand(store, home, settings.nix.options)
    await nix.initialise()

    objects = ObjectStore(settings.storage_url)
    blobs = Blobs(objects)
    records = StoredRecords(objects, settings.limits.memory_cache)
    contents = StoreFiles(store.root)
    max_layers = settings.limits.max_layers
    steps = Steps(
        source=_source(settings),
        evaluator=OneShotEvaluator(nix, settings.nix.eval_timeout, settings.nix.evaluators),
        realiser=NixRealiser(nix, gc_roots, store.uri, settings.nix.build_timeout, settings.nix.builds),
        path_infos=LocalPathInfos(StoreDatabase(store.database), NixPathInfos(nix)),
        assembler=Assembler(contents, blobs, LayerMaker(contents, blobs, records), max_layers),
        blobs=blobs,
        records=records,
    )
    base_packages = tuple(map(AttributePath.parse, settings.base_packages))
    service = Service(
        settings,
        NameGrammar(settings.format, settings.systems, settings.all_meta_packages),
        Pipeline(steps, base_packages, max_layers, settings.limits.failure_ttl),
        blobs,
    )
    try:
        yield service
    finally:
        blobs.close()
        steps.source.close()


def _source(settings: Settings) -> PackageSource:
    directory = Path(settings.source.removeprefix("path:"))
    if not directory.is_dir():
        raise SettingsError("source", f"there is no directory {directory}; name one that holds a package set")
    return PathSource(directory, settings.cache_path / "checkouts")
