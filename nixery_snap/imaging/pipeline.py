"""The one path through the program: pin -> evaluate -> locate, else realise -> assemble, over ports.

Everything behind the pin is a function of its input, so each step is remembered under a key of that input
and equal steps that run at the same time are one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from cachetools import LRUCache

from nixery_snap.errors import (
    BlobNotFound,
    CorruptPath,
    EvaluationFailed,
    NixerySnapError,
    PackagesUnavailable,
    PathsMissing,
    RealisationFailed,
    RealisationTimedOut,
    StillWorking,
    StorageError,
    SubstituterError,
)
from nixery_snap.imaging.admission import CLIENT, BuildQueue, ClientLimit
from nixery_snap.imaging.assemble import Assembler
from nixery_snap.imaging.coalesce import Coalescer
from nixery_snap.imaging.image import Image, Outcome
from nixery_snap.imaging.instantiate import Instantiator
from nixery_snap.imaging.locate import find_closure
from nixery_snap.imaging.request import (
    DEFAULT_SOURCE,
    DEFAULT_TAG,
    ImageFormat,
    ImageRequest,
    cache_key,
)
from nixery_snap.imaging.resolution import Resolution
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.path_info import Closure
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.compression import Compression
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import Manifest
from nixery_snap.ports import (
    BlobStore,
    Evaluator,
    ImageNames,
    Leases,
    Package,
    PackageSource,
    PathInfoSource,
    Pin,
    Progress,
    Publisher,
    Realiser,
    Records,
    UseKind,
    Uses,
    use,
)
from nixery_snap.steps import step

log = structlog.get_logger()
T = TypeVar("T")

# Part of every image's and resolution's key: raise it when the same input begins to give other bytes.
RECIPE_VERSION: Final = 1

_STEPS: Final = {
    "pinned": "pin",
    "evaluated": "evaluate",
    "located": "locate",
    "realised": "realise",
    "assembled": "assemble",
}


@dataclass(frozen=True, slots=True)
class Steps:
    """The adapters that do the work of each step."""

    sources: Mapping[str, PackageSource]
    """By the names that requests have for them."""
    evaluator: Evaluator
    realiser: Realiser
    path_infos: PathInfoSource
    refusals: Callable[[Collection[StorePath]], Collection[SubstituterError]]
    """Why paths were not taken from binary caches that claim to have them."""
    publisher: Publisher
    assembler: Assembler
    blobs: BlobStore
    records: Records
    leases: Leases
    uses: Uses
    names: ImageNames


class Pipeline:
    """Makes images. `base_packages` go into every image; classic ones have at most `max_layers`.

    `popularity_digest` stands for the popularity by which classic layers are chosen, None for no such.

    `delivery` is what the settings say of how clients fetch store paths, as far as snapshotter images depend on it.
    """

    def __init__(
        self,
        steps: Steps,
        base_packages: tuple[AttributePath, ...],
        max_layers: int,
        failure_ttl_seconds: float,
        delivery: tuple[Any, ...],
        popularity_digest: str | None,
        builds: BuildQueue,
        clients: ClientLimit,
    ) -> None:
        self._steps = steps
        self._base_packages = frozenset(base_packages)
        self._max_layers = max_layers
        self._delivery = delivery
        self._popularity_digest = popularity_digest
        self._pins: Coalescer[Pin] = Coalescer()
        # Images whose blobs have been seen in the store by this process.
        self._whole: LRUCache[str, bool] = LRUCache(4096)
        # Names whose newest image has been noted by this process.
        self._named: LRUCache[tuple[str, str], bool] = LRUCache(4096)
        self._images: Coalescer[Image] = Coalescer(failure_ttl_seconds)
        self._recorded: Coalescer[Image | None] = Coalescer()
        self._resolutions: Coalescer[Resolution] = Coalescer()
        self._instantiator = Instantiator(steps.evaluator, steps.realiser)
        self._builds = builds
        self._clients = clients
        self._states: dict[str, str] = {}  # what goes on, by the key of an image being made

    def source(self, request: ImageRequest) -> PackageSource:
        return self._steps.sources[request.source]

    async def ready(self, wait_seconds: float) -> None:
        """Raises SourceError when not even the default source can be read, StillWorking while it is."""
        await self.pin(DEFAULT_SOURCE, DEFAULT_TAG, wait_seconds, "")

    async def images(
        self, requests: Sequence[ImageRequest], wait_seconds: float | None = None, client: str = ""
    ) -> list[Image]:
        """The same image for several systems, without those for which it does not evaluate or cannot be built.

        Raises what the first one raises when none is left.
        """
        # Once: all are of the same revision.
        pin = await self.pin(requests[0].source, requests[0].tag, wait_seconds, client)
        results = await asyncio.gather(
            *(self._image_at(pin, request, wait_seconds, client=client) for request in requests),
            return_exceptions=True,
        )
        images = []
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, Image):
                images.append(result)
            elif isinstance(
                result, PackagesUnavailable | EvaluationFailed | RealisationFailed | RealisationTimedOut
            ):
                log.info("system-left-out", title=request.title, system=request.system, reason=str(result))
            else:
                raise result
        if not images and isinstance(results[0], BaseException):
            raise results[0]
        return images

    async def image(
        self,
        request: ImageRequest,
        wait_seconds: float | None = None,
        progress: Progress = lambda line: None,
        client: str = "",
    ) -> Image:
        """The image, from the records or made now; `client` is whom that counts for, if anybody.

        Raises StillWorking after `wait_seconds`, while the work goes on, and TooManyRequests; else what the steps
        raise.
        """
        pin = await self.pin(request.source, request.tag, wait_seconds, client)
        return await self._image_at(pin, request, wait_seconds, progress, client)

    async def _image_at(
        self,
        pin: Pin,
        request: ImageRequest,
        wait_seconds: float | None,
        progress: Progress = lambda line: None,
        client: str = "",
    ) -> Image:
        key = self._key(request, pin)
        if image := await self._recorded.run(key, lambda: self._from_record(key, request, pin)):
            await self._note_name(request, key)
            return image
        make = self._counted(self._images, key, client, lambda: self._made(key, request, pin, progress))
        try:
            image = await self._images.run(key, make, wait_seconds)
        except StillWorking as error:
            state = self._states.get(key, "")
            raise StillWorking(error.waited_seconds, error.retry_after_seconds, state) from None
        await self._note_name(request, key)
        return image

    async def _note_name(self, request: ImageRequest, key: str) -> None:
        """After the record of its image: what is listed is there."""
        if not request.name or (request.name, key) in self._named:
            return
        try:
            await self._steps.names.put(request.name, key)
            self._named[request.name, key] = True
        except StorageError as error:  # what is there can be served from a disk that takes nothing more
            log.warning("name-not-noted", name=request.name, reason=str(error))

    async def pin(self, name: str, tag: str, wait_seconds: float | None, client: str) -> Pin:
        """Of the source of that name. Raises as `image` does."""
        source = self._steps.sources[name]
        if pin := source.current(tag):
            return pin

        async def work() -> Pin:
            with _timed("pinned", source=name, tag=tag) as facts:
                pin = await source.pin(tag)
                facts["revision"] = pin.revision
            return pin

        key = f"{name} {tag}"
        return await self._pins.run(key, self._counted(self._pins, key, client, work), wait_seconds)

    def _counted(
        self, running: Coalescer[T], key: str, client: str, work: Callable[[], Awaitable[T]]
    ) -> Callable[[], Awaitable[T]]:
        """`work`, which counts for `client` from now until it ends, unless it is under way already.

        To be given to `running` at once. Raises TooManyRequests.
        """
        if not client or running.runs(key):
            return work
        self._clients.begin(client)

        async def counted() -> T:
            CLIENT.set(client)
            try:
                return await work()
            finally:
                self._clients.end(client)

        return counted

    async def _made(self, key: str, request: ImageRequest, pin: Pin, progress: Progress) -> Image:
        def note(line: str) -> None:
            self._states[key] = line
            progress(line)

        try:
            async with self._steps.leases.held(key, note):
                # Another process, or this one while the record was looked for, may have made it.
                if image := await self._from_record(key, request, pin):
                    return image
                return await self._image(key, request, pin, note)
        finally:
            self._states.pop(key, None)

    async def drain(self, timeout_seconds: float) -> int:
        """Let running work finish; returns how many images were given up. Whoever waits for them gets ShuttingDown."""
        await self._pins.drain(0)  # what comes of them would only begin then
        return await self._images.drain(timeout_seconds)

    def _key(self, request: ImageRequest, pin: Pin) -> str:
        shape: Any = list(self._delivery)
        if request.format is ImageFormat.CLASSIC:
            popularity = self._popularity_digest
            shape = [self._max_layers, popularity] if popularity else self._max_layers
            if request.compression is not Compression.GZIP:  # without it, keys are those of older versions
                shape = [shape, request.compression]
        names = [list(name.parts) for name in request.names]
        base = sorted(list(name.parts) for name in self._base_packages)
        told = [pin.url] if pin.url else []  # in the manifest: of one revision there can be several copies
        return cache_key(
            *(RECIPE_VERSION, pin.revision, *_variant(pin)),
            *(request.system, request.format, names, request.shell, base, shape, *told),
        )

    def forget(self) -> None:
        """What was seen in the store."""
        self._whole.clear()
        self._named.clear()

    async def _from_record(self, key: str, request: ImageRequest, pin: Pin) -> Image | None:
        image = await self._recorded_image(key, request, pin)
        if image is not None and not await self._steps.uses.note(use(UseKind.IMAGE, key)):
            self._whole.pop(key, None)
            image = await self._recorded_image(key, request, pin)
        return image

    async def _recorded_image(self, key: str, request: ImageRequest, pin: Pin) -> Image | None:
        if record := await self._steps.records.get("image", key):
            image = _image_of(record, request, pin, key)
            if key in self._whole or await self._is_whole(image):
                self._whole[key] = True
                return image
        return None

    async def _image(self, key: str, request: ImageRequest, pin: Pin, progress: Progress) -> Image:
        resolution = await self._resolve(request, pin, progress)
        refused: set[tuple[str, str]] = set()
        while True:
            swept = await self._steps.uses.settled()
            try:
                resolution, closure, realised = await self._locate(key, request, pin, resolution, progress)
                digest = await self._assemble(request, pin, resolution, closure, realised, progress)
            except CorruptPath as error:
                # Whoever has that bad copy is not asked for it again: another has it, or it is built.
                if (error.url, error.path) in refused:
                    raise
                refused.add((error.url, error.path))
                log.warning("looking-elsewhere", path=error.path, cache=error.url, reason=error.reason)
                continue
            record = {
                "manifest": str(digest),
                "resolution": resolution.to_json(),
                "closure": [[str(path), info.nar_size] for path, info in closure.items()],
            }
            outcome = Outcome.REALISED if realised else Outcome.EVALUATED
            made = replace(_image_of(record, request, pin, key), outcome=outcome)
            image = await self._record(made)
            # What it is made of may have been there before, unused for so long that it was removed just now.
            if await self._steps.uses.settled() == swept:
                return image

    async def _record(self, image: Image) -> Image:
        """The image that is recorded now: `image`, or what another replica recorded first."""
        await self._steps.uses.note(use(UseKind.IMAGE, image.key), use(UseKind.MANIFEST, image.digest))
        # A build need not be reproducible: whichever replica records its image first, all serve that one.
        record = await self._steps.records.put("image", image.key, image.record)
        recorded = replace(image, digest=Digest.parse(record["manifest"]), record=record)
        if recorded.digest == image.digest or await self._is_whole(recorded):
            return recorded
        await self._steps.records.replace("image", image.key, image.record)
        return image

    async def _locate(
        self, key: str, request: ImageRequest, pin: Pin, resolution: Resolution, progress: Progress
    ) -> tuple[Resolution, Closure, bool]:
        """The closure from what stores say, and whether packages had to be realised for it."""
        realised = False
        missing: set[StorePath] = set()
        while True:
            try:
                return resolution, await self._closure(resolution), realised
            except PathsMissing as error:
                # More can be missing afterwards: what others find bad meanwhile is not taken from its cache.
                before, missing = missing, missing | set(map(StorePath.parse, error.paths))
                if missing == before:
                    raise
            realised = True
            needed = await self._unknown(resolution)
            resolution = await self._instantiate(request, pin, resolution, needed)
            names = {package.attribute for package in needed}
            try:
                await self._realise(key, [one for one in resolution.all if one.attribute in names], progress)
            except RealisationFailed as error:
                raise self._explained(error, missing) from None

    async def _closure(self, resolution: Resolution) -> Closure:
        with _timed("located") as facts:
            closure = await find_closure(self._steps.path_infos, resolution.outputs)
            facts["paths"] = len(closure)
        return closure

    def _explained(self, error: RealisationFailed, missing: Collection[StorePath]) -> RealisationFailed:
        """With what binary caches have to do with it."""
        refusals = [str(refusal) for refusal in self._steps.refusals(missing)]
        if not refusals:
            return error
        reason = "; ".join((error.reason, *refusals))
        return RealisationFailed(error.drv_path, reason, error.log_tail, error.log_command)

    async def _assemble(
        self,
        request: ImageRequest,
        pin: Pin,
        resolution: Resolution,
        closure: Closure,
        realised: bool,
        progress: Progress,
    ) -> Digest:
        """The digest of the stored manifest, after clients can fetch what it names."""
        progress(f"assembling {len(closure)} store paths")
        snapshotter = request.format is ImageFormat.SNAPSHOTTER
        publisher = self._steps.publisher
        closure_info = publisher.closure_info(closure) if snapshotter else None
        if snapshotter:
            published = asyncio.ensure_future(publisher.offer(closure, progress))
        else:
            published = asyncio.ensure_future(self._keep(closure, progress) if realised else asyncio.sleep(0))
        try:
            with _timed("assembled", format=request.format, title=request.title) as facts:
                manifest = await self._steps.assembler.assemble(
                    request, pin, resolution, closure, closure_info
                )
                await published
                digest = await self._steps.blobs.put(bytes(manifest))
                facts |= {"digest": str(digest), "layers": len(manifest.layers)}
        finally:
            # Its failure counts only where nothing else failed before.
            published.cancel()
            await asyncio.gather(published, return_exceptions=True)
        return digest

    async def _keep(self, closure: Closure, progress: Progress) -> None:
        """Publish what was built: replicas and nodes need not build it again. No image waits for its success."""
        try:
            await self._steps.publisher.publish(closure, progress)
        except NixerySnapError as error:
            log.warning("not-published", reason=str(error))

    async def _is_whole(self, image: Image) -> bool:
        """Whether the store still has all of it; manifest and config are read, and so checked, as they are small."""
        try:
            manifest = await self.manifest(image)
            await self._steps.blobs.get(manifest.config.digest)
        except BlobNotFound:
            return False
        return all(await asyncio.gather(*(self._steps.blobs.has(layer.digest) for layer in manifest.layers)))

    async def _instantiate(
        self, request: ImageRequest, pin: Pin, resolution: Resolution, needed: Collection[Package]
    ) -> Resolution:
        """The resolution is another when its derivations were gone and evaluation is not the same again."""
        key = " ".join((request.source, pin.revision, *_variant(pin)))
        checkout = partial(self.source(request).checkout, pin)
        return await self._instantiator.instantiate(key, checkout, request.system, resolution, needed)

    async def _realise(self, key: str, packages: Collection[Package], progress: Progress) -> None:
        progress("waiting for its turn to be built")
        async with self._builds.turn(lambda: self._images.is_awaited(key)):
            with _timed("realised", packages=len(packages)):
                await self._steps.realiser.realise(key, packages, progress)

    async def _unknown(self, resolution: Resolution) -> Sequence[Package]:
        """What has to be realised."""
        packages = [package for package in resolution.packages if not await self._is_known(package)]
        return packages or resolution.packages

    async def _is_known(self, package: Package) -> bool:
        try:
            await find_closure(self._steps.path_infos, package.outputs.values())
        except PathsMissing:
            return False
        return True

    async def _resolve(self, request: ImageRequest, pin: Pin, progress: Progress) -> Resolution:
        """Both formats of an image share one evaluation, which is remembered."""
        names = tuple(sorted({*request.names, *self._base_packages}))
        requested, every = ([list(name.parts) for name in some] for some in (request.names, names))
        key = cache_key(RECIPE_VERSION, pin.revision, *_variant(pin), request.system, requested, every)

        async def evaluate() -> Resolution:
            if record := await self._steps.records.get("resolution", key):
                return Resolution.from_json(record)
            progress(f"evaluating {request.title}")
            package_set = await self.source(request).checkout(pin)
            with _timed("evaluated", system=request.system, names=len(names)):
                results = await self._steps.evaluator.evaluate(package_set, request.system, names)
            resolution = Resolution.of(dict(zip(names, results, strict=True)), request.names)
            await self._steps.records.put("resolution", key, resolution.to_json())
            return resolution

        return await self._resolutions.run(key, evaluate)

    async def manifest(self, image: Image) -> Manifest:
        return Manifest.parse(await self._steps.blobs.get(image.digest))


def _image_of(record: Mapping[str, Any], request: ImageRequest, pin: Pin, key: str) -> Image:
    return Image(Digest.parse(record["manifest"]), request.architecture, pin, key, record)


def _variant(pin: Pin) -> tuple[str, ...]:
    return (pin.variant,) if pin.variant else ()


@contextmanager
def _timed(event: str, **facts: Any) -> Iterator[dict[str, Any]]:
    """Log `event` with what it took, once the step has succeeded; the others call the step as `_STEPS` does."""
    begun = time.perf_counter()
    with step(_STEPS[event], **facts) as known:
        yield known
    log.info(event, seconds=round(time.perf_counter() - begun, 4), **known)
