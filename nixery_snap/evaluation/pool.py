"""Evaluates with processes that stay: what a package set has once computed for one request, the next one finds."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import structlog
from cachetools import TTLCache

from nixery_snap.errors import EvaluationTimedOut, EvaluationTooBig, NixError, PackageProblem
from nixery_snap.evaluation.answers import Answers
from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.evaluation.question import Question
from nixery_snap.evaluation.seats import Seat, Seats
from nixery_snap.evaluation.warm import Died, NotUnderstood, Silent, WarmProcess
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import NixRunner, Package, PackageSet

log = structlog.get_logger()

_IDLE_SECONDS: Final = 300
_RETRY_SECONDS: Final = 60.0  # what was wrong with the machine may be over
_PACKAGE_SETS: Final = 1024
_MIB: Final = 1024 * 1024


class PooledEvaluator:
    """Implements the port Evaluator; at most `processes` stay at a time. Close it.

    `one_shot` answers what this cannot: why a package does not evaluate, package sets without a pin, and all when this
    Nix does not talk as expected; and, as long as it need not write derivations, the first question about a package
    set, as it is quicker then. A process that takes more than half of `memory_mib` after a request is ended, so
    that what one request has left does not make the next one fail.
    """

    def __init__(
        self,
        nix: NixRunner,
        one_shot: OneShotEvaluator,
        timeout_seconds: float,
        processes: int,
        memory_mib: int,
    ) -> None:
        self._nix = nix
        self._one_shot = one_shot
        self._timeout_seconds = timeout_seconds
        self._memory_mib = memory_mib
        self._seats: Seats[WarmProcess] = Seats(processes, _IDLE_SECONDS, WarmProcess.end)
        self._is_closed = False
        self._asked_about: TTLCache[Hashable, bool] = TTLCache(_PACKAGE_SETS, _IDLE_SECONDS)
        # Which kinds of evaluation, pure or not, are known to be possible here, and until when others are not.
        self._usable: set[bool] = set()
        self._unusable_until: dict[bool, float] = {}

    async def close(self) -> None:
        """Ends all processes; evaluations under way raise NixError."""
        self._is_closed = True
        await self._seats.close()

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        if package_set.pin is None or not names or not self._may_be_usable(package_set.is_flake):
            return await self._one_shot.evaluate(package_set, system, names)
        key = (package_set.pin.revision, package_set.pin.variant, str(package_set.directory), system)
        is_first = key not in self._asked_about
        self._asked_about[key] = True
        if is_first and not self._one_shot.writes(package_set):
            return await self._one_shot.evaluate(package_set, system, names)
        asked = await self._one_shot.question(package_set, system)
        try:
            async with self._seats.take(key) as seat:
                answers = await self._answers(seat, asked, names)
        except NotUnderstood as error:
            self._give_up(
                package_set.is_flake, error, _RETRY_SECONDS if isinstance(error, Silent) else math.inf
            )
            return await self._one_shot.evaluate(package_set, system, names)
        except Died as error:  # before it was asked anything
            # When the machine is not in order, this tells why.
            results = await self._one_shot.evaluate(package_set, system, names)
            if not error.is_killed:
                self._give_up(package_set.is_flake, error, _RETRY_SECONDS)
            return results
        return await self._results(package_set, system, asked, dict(zip(names, answers, strict=True)), names)

    def _may_be_usable(self, is_pure: bool) -> bool:
        return time.monotonic() >= self._unusable_until.get(is_pure, 0)

    def _give_up(self, is_pure: bool, error: Exception, seconds: float) -> None:
        if self._may_be_usable(is_pure):
            self._unusable_until[is_pure] = time.monotonic() + seconds
            log.warning("evaluators-not-kept", pure=is_pure, reason=str(error))

    async def _answers(
        self, seat: Seat[WarmProcess], asked: Question, names: Sequence[AttributePath]
    ) -> list[Answers | None]:
        """None for what was refused; leaves in the seat what can be asked again."""
        is_sound = False
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answers = [await self._answer(seat, asked, name) for name in names]
            is_sound = seat.held is not None and seat.held.resident_bytes <= self._memory_mib * _MIB // 2
        except TimeoutError:
            raise EvaluationTimedOut(self._timeout_seconds) from None
        finally:
            if not is_sound:
                self._seats.spoil(seat)
        return answers

    async def _answer(
        self, seat: Seat[WarmProcess], asked: Question, name: AttributePath, *, again: bool = True
    ) -> Answers | None:
        if seat.held is None and not self._is_closed:
            seat.held = await WarmProcess.start(
                self._nix, asked, self._memory_mib * _MIB, check=asked.is_pure not in self._usable
            )
            self._usable.add(asked.is_pure)
        held = seat.held
        if held is None or self._is_closed:
            raise NixError("this server is shutting down")
        try:
            return await held.answer(name)
        except Died as died:
            self._seats.spoil(seat)
            # What others have left in its memory, or who killed it, has nothing to do with this name.
            if again and (died.is_killed or (died.out_of_memory and held.answered)):
                return await self._answer(seat, asked, name, again=False)
            if died.out_of_memory:
                raise EvaluationTooBig(self._memory_mib) from None
            return None

    async def _results(
        self,
        package_set: PackageSet,
        system: str,
        asked: Question,
        answers: Mapping[AttributePath, Answers | None],
        names: Sequence[AttributePath],
    ) -> Sequence[Package | PackageProblem]:
        refused = [name for name, answer in answers.items() if answer is None]
        reasons = await self._one_shot.refused(package_set, system, asked, refused) if refused else ()
        results = dict(zip(refused, reasons, strict=True))

        async def one(name: AttributePath) -> Package | PackageProblem:
            answer = answers[name]
            return (
                results[name]
                if answer is None
                else await self._one_shot.result(package_set, system, asked, name, answer)
            )

        return await asyncio.gather(*map(one, names))
