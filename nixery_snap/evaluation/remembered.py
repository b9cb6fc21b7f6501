"""What has been evaluated once for a pin is not evaluated again, by any replica; nor is it twice at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import structlog
from cachetools import TTLCache

from nixery_snap.errors import (
    EvaluationFailed,
    EvaluationTimedOut,
    EvaluationTooBig,
    ExperimentalFeatureMissing,
    InvalidFormat,
    NixError,
    NixTooOld,
    PackageProblem,
)
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.oci import canonical_json
from nixery_snap.ports import Evaluator, Package, PackageSet, Records

log = structlog.get_logger()

PACKAGE_RECORD: Final = "package"  # of record
# Part of every key: raise it when the same package set begins to give other packages.
_VERSION: Final = 1
_FAILURES: Final = 16_384

Results = Mapping[AttributePath, Package | PackageProblem]
Keys = Mapping[AttributePath, str]
Running = dict[str, asyncio.Task[Results]]


class RememberedEvaluator:
    """Implements the port Evaluator around another one.

    Packages are remembered for ever; what is wrong with a package or a whole set, for `failure_ttl_seconds`.
    """

    def __init__(self, evaluator: Evaluator, records: Records, failure_ttl_seconds: float) -> None:
        self._evaluator = evaluator
        self._records = records
        self._problems: TTLCache[str, PackageProblem] = TTLCache(_FAILURES, failure_ttl_seconds)
        self._errors: TTLCache[str, NixError] = TTLCache(_FAILURES, failure_ttl_seconds)
        # What looks a name up, by its key; one task looks up many.
        self._running: Running = {}
        self._running_again: Running = {}

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        if package_set.pin is None:
            return await self._evaluator.evaluate(package_set, system, names)
        base = (_VERSION, package_set.pin.revision, package_set.pin.variant, system)
        keys = {name: _key(*base, name.parts) for name in names}
        known: dict[AttributePath, Package | PackageProblem] = {}
        running = self._running
        while missing := [name for name in keys if name not in known]:
            fresh = {name: keys[name] for name in missing if keys[name] not in running}
            ours = self._begin(package_set, system, fresh, _key(*base), running) if fresh else None
            tasks = {running[keys[name]] for name in missing}
            # Neither who gives up waiting nor who began ends what others wait for.
            await asyncio.wait(tasks)
            for task in tasks:
                if task is ours or not (task.cancelled() or task.exception()):
                    known |= task.result()
            # What another request's names made fail is tried without these, and without all others that may fail.
            running = self._running_again
        return [known[name] for name in names]

    def _begin(
        self, package_set: PackageSet, system: str, keys: Keys, set_key: str, running: Running
    ) -> asyncio.Task[Results]:
        task = asyncio.create_task(self._look_up(package_set, system, keys, set_key))
        running |= dict.fromkeys(keys.values(), task)
        task.add_done_callback(partial(_finish, keys, running))
        return task

    async def _look_up(self, package_set: PackageSet, system: str, keys: Keys, set_key: str) -> Results:
        found = await asyncio.gather(*map(self._remembered, keys.values()))
        known = {name: result for name, result in zip(keys, found, strict=True) if result is not None}
        missing = [name for name in keys if name not in known]
        if not missing:
            return known
        for key in (set_key, *(keys[name] for name in missing)):
            if error := self._errors.get(key):
                raise error.with_traceback(None)
        try:
            results = await self._evaluator.evaluate(package_set, system, missing)
        except (EvaluationFailed, ExperimentalFeatureMissing, NixTooOld) as error:
            self._errors[set_key] = error
            raise
        except (EvaluationTimedOut, EvaluationTooBig) as error:
            if len(missing) == 1:  # else nobody knows whose fault it is
                self._errors[keys[missing[0]]] = error
            raise
        revision = package_set.pin.revision if package_set.pin else None
        log.info("attributes-evaluated", revision=revision, system=system, names=[*map(str, missing)])
        for name, result in zip(missing, results, strict=True):
            known[name] = result
            if isinstance(result, Package):
                await self._records.put(PACKAGE_RECORD, keys[name], result.to_json())
            else:
                self._problems[keys[name]] = result
        return known

    async def _remembered(self, key: str) -> Package | PackageProblem | None:
        if problem := self._problems.get(key):
            return problem
        record = await self._records.get(PACKAGE_RECORD, key)
        try:
            return None if record is None else Package.from_json(record)
        except (KeyError, TypeError, AttributeError, InvalidFormat):
            return None  # of another version of this program


def _finish(keys: Keys, running: Running, task: asyncio.Task[Results]) -> None:
    for key in keys.values():
        del running[key]
    if not task.cancelled():
        task.exception()  # seen: perhaps nobody else waits


def _key(*parts: object) -> str:
    return hashlib.sha256(canonical_json.encode(parts)).hexdigest()
