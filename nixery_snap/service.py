"""The composition root: the only place that constructs adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nixery_snap.errors import SettingsError
from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.imaging.admission import BuildQueue, ClientLimit
from nixery_snap.imaging.assemble import Assembler
from nixery_snap.imaging.layers import LayerMaker
from nixery_snap.imaging.pipeline import Pipeline, Steps
from nixery_snap.imaging.request import DEFAULT_SOURCE, NameGrammar
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.signing import PublicKey, SecretKey
from nixery_snap.nix_stores.build_logs import BuildLogs
from nixery_snap.nix_stores.cache_transport import open_transport
from nixery_snap.nix_stores.combined import CombinedContents, CombinedPathInfos
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.nix_stores.local_store import StoreDatabase, StoreFiles
from nixery_snap.nix_stores.own_cache import OwnCache
from nixery_snap.nix_stores.own_transport import Forgetful, OwnTransport
from nixery_snap.nix_stores.path_info_command import LocalPathInfos, NixPathInfos
from nixery_snap.nix_stores.publisher import CachePublisher
from nixery_snap.nix_stores.realiser import NixRealiser
from nixery_snap.nix_stores.signing_key import load_signing_key
from nixery_snap.nix_stores.substituted_contents import SubstitutedContents
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.cache_files import StoredCacheFiles
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import BinaryCache, BlobStore, CacheFiles, PackageSource, PathInfoSource
from nixery_snap.settings import OWN_CACHE, Settings
from nixery_snap.sources.path import PathSource


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


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """Raises SettingsError, NixError."""
    store = NixStore.parse(settings.nix.store)
    home, gc_roots = settings.cache_path / "home", settings.cache_path / "gcroots"
    try:
        for directory in (home, gc_roots):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            "cache_directory", f"{settings.cache_path} cannot be used: {error.strerror}"
        ) from error
    objects = ObjectStore(settings.storage_url)
    blobs = Blobs(objects)
    records = StoredRecords(objects, settings.limits.memory_cache)
    files = StoredCacheFiles(objects)
    key = load_signing_key(settings.signing_key_path, create=not settings.binary_cache.signing_key_file)
    async with AsyncExitStack() as stack:
        stack.callback(blobs.close)
        own, others = _substituters(settings, files, key, records)
        nix = NixCommand(store, home, settings.nix.options)
        await nix.initialise()
        substituters = Substituters((own, *others.values()))
        stack.push_async_callback(substituters.close)
        local = LocalPathInfos(StoreDatabase(store.database), NixPathInfos(nix))
        files_of_store = StoreFiles(store.root)
        path_infos = CombinedPathInfos(local, substituters)
        contents = CombinedContents(
            files_of_store, SubstitutedContents(substituters, records, asyncio.get_running_loop())
        )
        cache = OwnCache(
            files,
            key,
            files_of_store,
            BuildLogs(store.root),
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
        layers = LayerMaker(contents, blobs, records)
        steps = Steps(
            sources=_sources(settings),
            evaluator=OneShotEvaluator(nix, settings.nix.eval_timeout, settings.nix.evaluators),
            realiser=NixRealiser(
                nix,
                gc_roots,
                store.uri,
                settings.nix.build_timeout,
                lambda: _nix_options(settings, key, others),
            ),
            path_infos=path_infos,
            refusals=lambda paths: [error for path in paths for error in substituters.errors_of(path)],
            publisher=publisher,
            assembler=Assembler(contents, blobs, layers, max_layers, names_paths=names_paths),
            blobs=blobs,
            records=records,
        )
        for source in steps.sources.values():
            stack.callback(source.close)
        base_packages = tuple(map(AttributePath.parse, settings.base_packages))
        delivery = (sorted(settings.client_substituters), settings.names_closure_info, names_paths)
        yield Service(
            settings,
            NameGrammar(
                settings.format,
                settings.systems,
                settings.all_meta_packages,
                settings.source_names,
                settings.limits.packages,
            ),
            Pipeline(
                steps,
                base_packages,
                max_layers,
                settings.limits.failure_ttl,
                delivery,
                BuildQueue(settings.nix.builds, settings.limits.build_queue),
                ClientLimit(settings.limits.client_images),
            ),
            blobs,
            cache,
            str(key.public_key),
            path_infos,
            publisher,
        )


def _substituters(
    settings: Settings, files: CacheFiles, key: SecretKey, records: StoredRecords
) -> tuple[Substituter, dict[str, Substituter]]:
    """Our own binary cache as one, and those of the settings by their URLs there."""
    limits = settings.substitution
    own = Substituter(
        OWN_CACHE, OwnTransport(OWN_CACHE, files), [key.public_key], Forgetful(), priority=0, negative_ttl=0
    )
    others = {
        one.url: Substituter(
            one.url,
            open_transport(one.url, request_timeout=limits.request_timeout, nar_timeout=limits.nar_timeout),
            [PublicKey.parse(text) for text in one.public_keys],
            records,
            priority=one.priority,
            negative_ttl=limits.negative_ttl,
            concurrency=limits.concurrency,
        )
        for one in settings.substituters
    }
    return own, others


def _nix_options(settings: Settings, key: SecretKey, others: Mapping[str, Substituter]) -> dict[str, str]:
    """What Nix is told of the substituters that answer, beside its own configuration.

    One that does not would make Nix wait, or fail, where it could build.
    """
    sound = [one for one in settings.substituters if others[one.url].is_sound]
    urls = [one.url for one in sound]
    keys = [text for one in sound for text in one.public_keys]
    if settings.storage_url.startswith("file:"):
        # What a replica, or we before our Nix store was cleaned, have built and published.
        urls.append(settings.storage_url)
        keys.append(str(key.public_key))
    return ({"builders": settings.nix.builders} if settings.nix.builders else {}) | {
        "extra-substituters": " ".join(urls),
        "extra-trusted-public-keys": " ".join(keys),
        "fallback": "true",
        "connect-timeout": "5",
        "stalled-download-timeout": str(int(settings.substitution.request_timeout) or 1),
    }


def _sources(settings: Settings) -> dict[str, PackageSource]:
    """By name. Raises SettingsError."""
    specs = {name: source.spec for name, source in settings.sources.items()}
    return {
        name: _source(settings, name, spec)
        for name, spec in ({DEFAULT_SOURCE: settings.source} | specs).items()
    }


def _source(settings: Settings, name: str, spec: str) -> PackageSource:
    key = "source" if name == DEFAULT_SOURCE else f"sources.{name}.spec"
    directory = Path(spec.removeprefix("path:"))
    if not directory.is_dir():
        raise SettingsError(key, f"there is no directory {directory}; name one that holds a package set")
    return PathSource(directory, settings.cache_path / "checkouts")
