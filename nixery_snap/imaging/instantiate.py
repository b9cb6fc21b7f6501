"""Derivations are written when something has to be built: what binary caches have needs none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from weakref import WeakValueDictionary

import structlog

from nixery_snap.imaging.resolution import Resolution
from nixery_snap.ports import Evaluator, Package, PackageSet, Realiser

log = structlog.get_logger()


class Instantiator:
    """Makes sure that the store has derivations. `evaluator` may have left them unwritten, or they were collected as
    garbage since: then it evaluates the packages once more, with nothing remembered."""

    def __init__(self, evaluator: Evaluator, realiser: Realiser) -> None:
        self._evaluator = evaluator
        self._realiser = realiser
        # Two images at a time may have packages in common.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def instantiate(
        self,
        key: str,
        checkout: Callable[[], Awaitable[PackageSet]],
        system: str,
        resolution: Resolution,
        packages: Collection[Package],
    ) -> Resolution:
        """`resolution` with the derivations of `packages`, some of its own, in the store.

        `key` stands for the package set. Raises what evaluation raises, and PackagesUnavailable.
        """
        async with self._turns.setdefault(f"{key} {system}", asyncio.Lock()):
            unwritten = {package.drv_path for package in await self._realiser.unwritten(packages)}
            if not unwritten:
                return resolution
            names = [package.attribute for package in resolution.all if package.drv_path in unwritten]
            package_set = await checkout()
            revision = package_set.pin.revision if package_set.pin else None
            results = await self._evaluator.evaluate(replace(package_set, pin=None), system, names)
            log.info("instantiated", revision=revision, system=system, names=[*map(str, names)])
        return resolution.replaced(dict(zip(names, results, strict=True)))
