"""Evaluates with one process of `nix-instantiate` per question."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Final

from cachetools import LRUCache

from nixery_snap.errors import EvaluationTimedOut, EvaluationTooBig, PackageProblem
from nixery_snap.evaluation import question
from nixery_snap.evaluation.answers import (
    OUT_OF_MEMORY,
    Answers,
    Refused,
    failure,
    result,
    whole_set_error,
)
from nixery_snap.evaluation.question import Question
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.ground import ground_error
from nixery_snap.nix.log_events import LogReader
from nixery_snap.ports import NixRunner, Package, PackageSet

_QUESTIONS: Final = 64
_FAILED: Final = Answers([{"status": "failed"}], {})


class OneShotEvaluator:
    """Implements the port Evaluator; at most `processes` at a time, each for at most `timeout_seconds`.

    Writing derivations can take ten times as long as computing them. Unless it `writes_all`, those of package sets
    with a pin are not written: what binary caches have needs none.
    """

    def __init__(
        self,
        nix: NixRunner,
        timeout_seconds: float,
        processes: int,
        memory_mib: int,
        *,
        writes_all: bool = True,
    ) -> None:
        self._nix = nix
        self._timeout_seconds = timeout_seconds
        self._processes = asyncio.Semaphore(processes)
        self._memory_mib = memory_mib
        self._writes_all = writes_all
        self._questions: LRUCache[Hashable, Question] = LRUCache(_QUESTIONS)

    async def question(self, package_set: PackageSet, system: str) -> Question:
        """Raises EvaluationFailed, NixMissing."""
        if (pin := package_set.pin) is None:
            return await Question.about(package_set, system, self._nix)
        key = (pin.revision, pin.variant, str(package_set.directory), system)
        if (asked := self._questions.get(key)) is None:
            asked = self._questions[key] = await Question.about(package_set, system, self._nix)
        return asked

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        asked = await self.question(package_set, system)
        try:
            answers = await self._answers(asked, names, writes=self.writes(package_set))
        except Refused:
            return await self.refused(package_set, system, asked, names)
        return await self._results(package_set, system, asked, names, answers)

    def writes(self, package_set: PackageSet) -> bool:
        """Whether `evaluate` leaves derivations in the store; what is to be built while evaluating must be there."""
        return self._writes_all or package_set.pin is None or package_set.allows_builds

    async def refused(
        self, package_set: PackageSet, system: str, asked: Question, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        """The results after an error that Nix cannot catch has ended the evaluation of `names`."""
        # Either the set itself is at fault …
        try:
            await self._ask(asked, [], explain=False)
        except Refused as refused:
            raise whole_set_error(refused.message, package_set) from None
        # … or some package, which must stop no other.
        answers = await self._halved(asked, names)
        return await self._results(package_set, system, asked, names, answers)

    async def result(
        self, package_set: PackageSet, system: str, asked: Question, name: AttributePath, answers: Answers
    ) -> Package | PackageProblem:
        """What the one answer for `name` means; when that has failed, Nix is asked why."""
        if answers.results[0]["status"] == "failed":
            try:
                answers = await self._ask(asked, [name], explain=True)
            except Refused as refused:
                return failure(name, system, refused.message, package_set)
        [answer] = answers.results
        return await result(name, answer, answers.attributes)

    async def _results(
        self,
        package_set: PackageSet,
        system: str,
        asked: Question,
        names: Sequence[AttributePath],
        answers: Sequence[Answers],
    ) -> Sequence[Package | PackageProblem]:
        each = zip(names, answers, strict=True)
        return await asyncio.gather(
            *(self.result(package_set, system, asked, name, answer) for name, answer in each)
        )

    async def _answers(
        self, asked: Question, names: Sequence[AttributePath], *, writes: bool = True
    ) -> list[Answers]:
        """One for each name. Raises Refused."""
        answers = await self._ask(asked, names, explain=False, writes=writes)
        return [Answers([answer], answers.attributes) for answer in answers.results]

    async def _halved(self, asked: Question, names: Sequence[AttributePath]) -> list[Answers]:
        """The same of names that are refused together."""
        if len(names) == 1:
            return [_FAILED]
        middle = len(names) // 2
        halves = await asyncio.gather(*(self._half(asked, half) for half in (names[:middle], names[middle:])))
        return [answer for half in halves for answer in half]

    async def _half(self, asked: Question, names: Sequence[AttributePath]) -> list[Answers]:
        try:
            return await self._answers(asked, names)
        except Refused:
            return await self._halved(asked, names)

    async def _ask(
        self, asked: Question, names: Sequence[AttributePath], *, explain: bool, writes: bool = True
    ) -> Answers:
        """What is refused without writing may be granted with it: files that Nix has made can be read only then."""
        log = LogReader()
        async with self._processes:
            try:
                finished = await self._nix.run(
                    "nix-instantiate",
                    *("--eval", "--strict", "--json", *asked.options),
                    *(["--read-write-mode"] if writes else []),
                    *("--argstr", "set", asked.data),
                    *("--argstr", "request", question.request(names, explain=explain)),
                    *("--expr", f"{{ set, request }}: {asked.expression('resolve.nix')} set request"),
                    timeout_seconds=self._timeout_seconds,
                    on_stderr=log.feed,
                    memory_bytes=self._memory_mib * 1024 * 1024,
                )
            except TimeoutError:
                raise EvaluationTimedOut(self._timeout_seconds) from None
        if finished.returncode == 0:
            return Answers.parse(finished.stdout)
        message = log.errors[-1] if log.errors else "\n".join(log.plain) or "Nix gave no reason"
        if OUT_OF_MEMORY.search("\n".join((message, *log.plain))):
            raise EvaluationTooBig(self._memory_mib)
        if error := ground_error(message):
            raise error
        raise Refused(message)
