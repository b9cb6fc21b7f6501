"""Classic layers that have been removed, made again from their recipes when somebody asks for them by digest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from nixery_snap.errors import BlobNotFound, InvalidFormat, NixError, NotFound, SubstituterError
from nixery_snap.imaging.admission import ClientLimit
from nixery_snap.imaging.coalesce import Coalescer
from nixery_snap.imaging.layers import LayerMaker, Recipe
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import PathInfoSource, Records

log = structlog.get_logger()


class LostLayers:
    """Requests for the same layer share the work; each counts as an image being made for its client.

    `forget` are called when one is lost for good: only its image, made again, can bring it back.
    """

    def __init__(
        self,
        layers: LayerMaker,
        path_infos: PathInfoSource,
        records: Records,
        clients: ClientLimit,
        failure_ttl_seconds: float,
    ) -> None:
        self._layers = layers
        self._path_infos = path_infos
        self._records = records
        self._clients = clients
        self.forget: list[Callable[[], None]] = []
        self._running: Coalescer[None] = Coalescer(failure_ttl_seconds)

    async def make(self, digest: Digest, wait_seconds: float | None = None, client: str = "") -> None:
        """Afterwards the blob is there, with the very bytes that `digest` names.

        Raises BlobNotFound where that cannot be, StillWorking after `wait_seconds`, TooManyRequests, StorageError.
        """
        recipe = await self._recipe(digest)
        key = str(digest)

        async def counted() -> None:
            try:
                await self._make(recipe)
            finally:
                self._clients.end(client)

        work: Callable[[], Awaitable[None]] = counted
        if self._running.runs(key) or not client:
            work = lambda: self._make(recipe)  # noqa: E731 - as short as what it stands for
        else:
            self._clients.begin(client)
        await self._running.run(key, work, wait_seconds)

    async def _recipe(self, digest: Digest) -> Recipe:
        record = await self._records.get("recipe", digest.hex)
        try:
            if record is not None and (recipe := Recipe.from_json(record)).layer.digest == digest:
                return recipe
        except (InvalidFormat, LookupError, TypeError, AttributeError, ValueError):
            log.warning("recipe-damaged", digest=str(digest))
        raise BlobNotFound(str(digest))

    async def _make(self, recipe: Recipe) -> None:
        digest, paths = recipe.layer.digest, dict(recipe.paths)
        try:
            found = await self._path_infos.path_infos(paths)
            infos = tuple(found[path] for path in paths if path in found)
            if [info.nar_hash for info in infos] != list(paths.values()):
                reason = "a store path of it is nowhere to be had, or is another build"
            elif await self._layers.again(recipe, infos):
                log.info("layer-made-again", digest=str(digest), paths=len(infos))
                return
            else:
                reason = f"it was written by {recipe.codec}"
        except (NotFound, NixError, SubstituterError) as error:
            reason = str(error)
        log.warning("layer-lost", digest=str(digest), reason=reason)
        for forget in self.forget:
            forget()
        raise BlobNotFound(str(digest))
