"""The composition root: the only place that constructs adapters."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

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
    PackageSet,
    PathInfoSource,
    StoreContents,
    Uses,
)
from nixery_snap.settings import OWN_CACHE, Settings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that makes images, wired; what the registry and the commands build upon."""

    settings: Settings
    grammar: NameGrammar
    pipeline: Pipeline
    blobs: BlobStore
    cache: BinaryCache
    public_key: str
    path_infos: PathInfoSource
    publisher: CachePublisher
    packages: PackageSearch
    indexer: Indexer
    evaluator: Evaluator
    """Without what is remembered."""
    local: PathInfoSource
    realiser: NixRealiser
    objects: ObjectStore
    uses: Uses
    lost_layers: LostLayers

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
    objects = open_objects(settings)
    await objects.initialise()
    blobs = Blobs(objects)
    records = StoredRecords(objects, settings.limits.memory_cache)
    files = StoredCacheFiles(objects)
    key = load_signing_key(settings.signing_key_path, create=not settings.binary_cache.signing_key_file)
    if settings.binary_cache.publish != "off" and not on_node:
        await agree_on_key(key, records)
    async with AsyncExitStack() as stack:
        stack.callback(blobs.close)
        uses = await stack.enter_async_context(_uses(settings, objects))
        own, others = own_substituter(files, key), open_substituters(settings, records)
        # With an index of the revision and binary caches that have everything, Nix is not needed.
        has_nix = shutil.which("nix-store") is not None
        if has_nix:
            await nix.initialise()
        else:
            log.warning("without-nix", reason=str(NixMissing("nix-store")))
        substituters = Substituters((own, *others.values()))
        stack.push_async_callback(substituters.close)
        local = LocalPathInfos(StoreDatabase(nix.store.database), NixPathInfos(nix))
        files_of_store = StoreFiles(nix.store.root)
        path_infos: PathInfoSource = CombinedPathInfos(local, substituters) if has_nix else substituters
        substituted = SubstitutedContents(substituters, records, asyncio.get_running_loop())
        contents: StoreContents = CombinedContents(files_of_store, substituted) if has_nix else substituted
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
        max_layers = settings.limits.max_layers
        names_paths = settings.binary_cache.annotations != "closure"
        popularity = await asyncio.to_thread(read_popularity, settings.popularity)
        layers = LayerMaker(contents, blobs, records)
        sources = {}
        for name in settings.all_sources:
            sources[name] = open_source_of(settings, name, StoredPins(objects))
            stack.callback(sources[name].close)
        limits = (settings.nix.eval_timeout, settings.nix.evaluators, settings.nix.eval_memory_mib)
        one_shot = OneShotEvaluator(nix, *limits, writes_all=not settings.substituters)
        pool = PooledEvaluator(nix, one_shot, *limits)
        stack.push_async_callback(pool.close)
        indexes = Indexes(blobs, records, uses)
        catalogues = Catalogues(indexes)
        fair = FairEvaluator(pool, settings.nix.evaluators)
        remembered = RememberedEvaluator(fair, records, settings.limits.failure_ttl)
        evaluator = Indexed(remembered, indexes, catalogues)
        realiser = NixRealiser(
            nix,
            settings.gc_roots_path,
            nix.store.uri,
            settings.nix.build_timeout,
            lambda: nix_options(settings, key, others),
        )
        steps = Steps(
            sources=sources,
            evaluator=evaluator,
            realiser=realiser,
            path_infos=path_infos,
            refusals=lambda paths: [error for path in paths for error in substituters.errors_of(path)],
            publisher=NothingPublished() if on_node else publisher,
            assembler=Assembler(contents, blobs, layers, max_layers, popularity, names_paths=names_paths),
            blobs=blobs,
            records=records,
            leases=StoredLeases(objects, settings.object_store.lease),
            uses=uses,
        )
        delivery = (sorted(settings.client_substituters), settings.names_closure_info, names_paths)
        pipeline = Pipeline(
            steps,
            tuple(map(AttributePath.parse, settings.base_packages)),
            max_layers,
            settings.limits.failure_ttl,
            delivery,
            popularity.digest,
            BuildQueue(settings.nix.builds, settings.limits.build_queue),
            clients := ClientLimit(settings.limits.client_images),
        )
        uses.remembers(records.forget, own.forget, pipeline.forget)
        yield Service(
            settings,
            NameGrammar(
                settings.format,
                settings.systems,
                settings.all_meta_packages,
                settings.source_names,
                settings.limits.packages,
            ),
            pipeline,
            blobs,
            cache,
            str(key.public_key),
            path_infos,
            publisher,
            PackageSearch(steps.sources, settings.systems, indexes, catalogues),
            Indexer(
                nix,
                pool,
                blobs,
                records,
                timeout_seconds=settings.nix.eval_timeout,
                memory_mib=settings.nix.eval_memory_mib,
                processes=settings.nix.evaluators,
            ),
            pool,
            local,
            realiser,
            objects,
            uses,
            LostLayers(layers, path_infos, records, clients, settings.limits.failure_ttl),
        )


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
