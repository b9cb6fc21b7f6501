"""The composition root: the only place that constructs adapters."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from nixery_snap import metrics
from nixery_snap.adapters import (
    nix_options,
    open_nix,
    open_objects,
    open_source_of,
    open_substituters,
    own_substituter,
    read_popularity,
)
from nixery_snap.errors import NixMissing, SettingsError
from nixery_snap.evaluation.index import Indexes
from nixery_snap.evaluation.indexed import Indexed
from nixery_snap.evaluation.indexing import Indexer
from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.evaluation.pool import PooledEvaluator
from nixery_snap.evaluation.remembered import RememberedEvaluator
from nixery_snap.evaluation.search import Catalogues, PackageSearch
from nixery_snap.imaging.admission import BuildQueue, ClientLimit, FairEvaluator
from nixery_snap.imaging.again import LostLayers
from nixery_snap.imaging.assemble import Assembler
from nixery_snap.imaging.layers import LayerMaker
from nixery_snap.imaging.pipeline import Pipeline, Steps
from nixery_snap.imaging.request import NameGrammar
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix_stores.build_logs import BuildLogs
from nixery_snap.nix_stores.combined import CombinedContents, CombinedPathInfos
from nixery_snap.nix_stores.local_store import StoreDatabase, StoreFiles
from nixery_snap.nix_stores.own_cache import OwnCache
from nixery_snap.nix_stores.path_info_command import LocalPathInfos, NixPathInfos
from nixery_snap.nix_stores.publisher import CachePublisher, NothingPublished
from nixery_snap.nix_stores.realiser import NixRealiser
from nixery_snap.nix_stores.signing_key import agree_on_key, load_signing_key
from nixery_snap.nix_stores.substituted_contents import SubstitutedContents
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.cache_files import StoredCacheFiles
from nixery_snap.object_store.image_names import StoredImageNames
from nixery_snap.object_store.leases import StoredLeases
from nixery_snap.object_store.pins import StoredPins
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweeps import Sweeps
from nixery_snap.object_store.usage import StoredUses
from nixery_snap.ports import (
    UNTRACKED,
    BinaryCache,
    BlobStore,
    Evaluator,
    ImageNames,
    PackageSet,
    PathInfoSource,
    StoreContents,
    Uses,
)
from nixery_snap.settings import OWN_CACHE, Settings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ground:
    """Where one compartment keeps what it has."""

    objects: ObjectStore
    blobs: Blobs
    records: StoredRecords
    uses: Uses


@dataclass(frozen=True, slots=True)
class Compartment:
    """What makes and keeps images: for most sources together, or for a separate one by itself.

    What is kept in one is found from no other: neither by digest nor by the hash of a store path.
    """

    pipeline: Pipeline
    blobs: BlobStore
    names: ImageNames
    cache: BinaryCache
    path_infos: PathInfoSource
    publisher: CachePublisher
    objects: ObjectStore
    uses: Uses
    lost_layers: LostLayers


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that makes images, wired; what the registry and the commands build upon."""

    settings: Settings
    grammar: NameGrammar
    shared: Compartment
    separate: Mapping[str, Compartment]
    """By the names of their sources."""
    public_key: str
    packages: PackageSearch
    indexer: Indexer
    evaluator: Evaluator
    """Without what is remembered."""
    local: PathInfoSource
    realiser: NixRealiser

    def of(self, source: str) -> Compartment:
        return self.separate.get(source, self.shared)

    async def checkout(self, source: str, tag: str) -> PackageSet:
        """Raises SettingsError for a source that is none, TagNotFound, SourceError."""
        if source not in self.packages.sources:
            raise SettingsError(
                "sources", f"there is no source {source!r}; there are {', '.join(self.packages.sources)}"
            )
        return await self.packages.sources[source].checkout(await self.packages.sources[source].pin(tag))


@asynccontextmanager
async def open_service(settings: Settings, *, on_node: bool = False) -> AsyncIterator[Service]:
    """`on_node`: images are for this machine alone, so nothing is published. Raises SettingsError, NixError."""
    nix = open_nix(settings)
    key = load_signing_key(settings.signing_key_path, create=not settings.binary_cache.signing_key_file)
    async with AsyncExitStack() as stack:
        shared = await stack.enter_async_context(_ground(settings, None))
        if settings.binary_cache.publish != "off" and not on_node:
            await agree_on_key(key, shared.records)
        others = open_substituters(settings, shared.records)
        for substituter in others.values():
            stack.push_async_callback(substituter.close)
        # With an index of the revision and binary caches that have everything, Nix is not needed.
        has_nix = shutil.which("nix-store") is not None
        if has_nix:
            await nix.initialise()
        else:
            log.warning("without-nix", reason=str(NixMissing("nix-store")))
        local = LocalPathInfos(StoreDatabase(nix.store.database), NixPathInfos(nix))
        files_of_store = StoreFiles(nix.store.root)
        names_paths = settings.binary_cache.annotations != "closure"
        popularity = await asyncio.to_thread(read_popularity, settings.popularity)
        sources = {}
        for name in settings.all_sources:
            sources[name] = open_source_of(settings, name, StoredPins(shared.objects))
            stack.callback(sources[name].close)
        limits = (settings.nix.eval_timeout, settings.nix.evaluators, settings.nix.eval_memory_mib)
        one_shot = OneShotEvaluator(nix, *limits, writes_all=not settings.substituters)
        pool = PooledEvaluator(nix, one_shot, *limits)
        stack.push_async_callback(pool.close)
        indexes = Indexes(shared.blobs, shared.records, shared.uses)
        catalogues = Catalogues(indexes)
        fair = FairEvaluator(pool, settings.nix.evaluators)
        remembered = RememberedEvaluator(fair, shared.records, settings.limits.failure_ttl)
        realiser = NixRealiser(
            nix,
            settings.gc_roots_path,
            nix.store.uri,
            settings.nix.build_timeout,
            lambda: nix_options(settings, key, others),
        )
        builds = BuildQueue(settings.nix.builds, settings.limits.build_queue)
        clients = ClientLimit(settings.limits.client_images, settings.limits.client_new_images)

        async def compartment(ground: Ground, names: Collection[str]) -> Compartment:
            blobs, records = ground.blobs, ground.records
            files, image_names = StoredCacheFiles(ground.objects), StoredImageNames(ground.objects)
            own = own_substituter(files, key)
            substituters = Substituters((own, *others.values()))
            path_infos: PathInfoSource = CombinedPathInfos(local, substituters) if has_nix else substituters
            substituted = SubstitutedContents(substituters, records, asyncio.get_running_loop())
            contents: StoreContents = (
                CombinedContents(files_of_store, substituted) if has_nix else substituted
            )
            cache = OwnCache(
                files,
                key,
                files_of_store,
                BuildLogs(nix.store.root),
                tuple(others[url] for url in settings.binary_cache.upstreams),
            )
            await cache.initialise(settings.binary_cache.priority)
            publisher = CachePublisher(
                cache,
                own,
                substituters,
                {own.url if url == OWN_CACHE else others[url].url for url in settings.client_substituters},
                {others[url].url for url in settings.binary_cache.upstreams},
                settings.binary_cache.publish,
                names_closure_info=settings.names_closure_info,
            )
            layers, max_layers = LayerMaker(contents, blobs, records), settings.limits.max_layers
            steps = Steps(
                sources={name: sources[name] for name in names},
                evaluator=Indexed(remembered, indexes, catalogues),
                realiser=realiser,
                path_infos=path_infos,
                refusals=lambda paths: [error for path in paths for error in substituters.errors_of(path)],
                publisher=NothingPublished() if on_node else publisher,
                assembler=Assembler(contents, blobs, layers, max_layers, popularity, names_paths=names_paths),
                blobs=blobs,
                records=records,
                leases=StoredLeases(ground.objects, settings.object_store.lease),
                uses=ground.uses,
                names=image_names,
            )
            pipeline = Pipeline(
                steps,
                tuple(map(AttributePath.parse, settings.base_packages)),
                max_layers,
                settings.limits.failure_ttl,
                (sorted(settings.client_substituters), settings.names_closure_info, names_paths),
                popularity.digest,
                builds,
                clients,
            )
            ground.uses.remembers(records.forget, own.forget, pipeline.forget)
            lost = LostLayers(layers, path_infos, records, clients, settings.limits.failure_ttl)
            return Compartment(
                pipeline, blobs, image_names, cache, path_infos, publisher, ground.objects, ground.uses, lost
            )

        separate = frozenset() if on_node else settings.separate_sources
        yield Service(
            settings,
            NameGrammar(
                settings.format,
                settings.systems,
                settings.all_meta_packages,
                settings.source_names,
                settings.limits.packages,
                settings.compression,
            ),
            await compartment(shared, sources.keys() - separate),
            {
                name: await compartment(await stack.enter_async_context(_ground(settings, name)), [name])
                for name in sorted(separate)
            },
            str(key.public_key),
            PackageSearch(sources, settings.systems, indexes, catalogues),
            Indexer(
                nix,
                pool,
                shared.blobs,
                shared.records,
                timeout_seconds=settings.nix.eval_timeout,
                memory_mib=settings.nix.eval_memory_mib,
                processes=settings.nix.evaluators,
            ),
            pool,
            local,
            realiser,
        )


@asynccontextmanager
async def _ground(settings: Settings, source: str | None) -> AsyncIterator[Ground]:
    """Of a separate source, or of all others."""
    objects = open_objects(settings, source)
    await objects.initialise()
    blobs = Blobs(objects)
    try:
        async with _uses(settings, objects) as uses:
            records = StoredRecords(objects, settings.limits.memory_cache)
            metrics.watch_size("records", lambda: records.memory_bytes)
            yield Ground(objects, blobs, records, uses)
    finally:
        blobs.close()


@asynccontextmanager
async def _uses(settings: Settings, objects: ObjectStore) -> AsyncIterator[Uses]:
    retention = settings.retention
    if not retention.unused:
        await StoredUses.end(objects)
        yield UNTRACKED
        return
    sweeps = Sweeps(objects, retention.rules.pace_seconds)
    uses = StoredUses(objects, sweeps, retention.noted_seconds, retention.flush_seconds)
    async with uses.running():
        yield uses
