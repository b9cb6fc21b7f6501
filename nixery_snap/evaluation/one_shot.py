"""Evaluates with one process of `nix-instantiate` per question."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any, Final

from rapidfuzz import fuzz, process

from nixery_snap.errors import EvaluationFailed, EvaluationTimedOut, NixTooOld, PackageProblem, ProblemKind
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.log_events import LogReader
from nixery_snap.ports import NixRunner, Package, PackageSet

_SUGGESTIONS: Final = 3
# What nixpkgs' check-meta says (pkgs/stdenv/generic/check-meta.nix): one wording for a decade, then a list of
# problems (RFC 127).
_META_PROBLEMS: Final = (
    (re.compile(r"has an unfree license|has a blocklisted license"), ProblemKind.UNFREE),
    (re.compile(r"is marked as broken|^\s*- broken: ", re.MULTILINE), ProblemKind.BROKEN),
    (
        re.compile(r"is marked as insecure|has known vulnerabilit|^\s*- insecure: ", re.MULTILINE),
        ProblemKind.INSECURE,
    ),
    (re.compile(r"is not (available|supported) on"), ProblemKind.UNSUPPORTED_SYSTEM),
)
_ADVICE: Final = re.compile(r"\n\n|\n\s*(?:To allow|See also|a\) To )")
_MESSAGE_LENGTH: Final = 1000
_TOO_OLD: Final = re.compile(r"requires (an implementation of Nix|Nix (version )?>)", re.IGNORECASE)


class OneShotEvaluator:
    """Implements the port Evaluator; at most `processes` at a time, each for at most `timeout_seconds`."""

    def __init__(self, nix: NixRunner, timeout_seconds: float, processes: int) -> None:
        self._nix = nix
        self._timeout_seconds = timeout_seconds
        self._processes = asyncio.Semaphore(processes)

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        try:
            answers = await self._ask(package_set, system, names, explain=False)
        except _Refused:
            # An error that Nix cannot catch ended the whole evaluation. Either the set itself is at fault …
            try:
                await self._ask(package_set, system, [], explain=False)
            except _Refused as refused:
                raise _whole_set_error(refused.message, package_set) from None
            # … or some package: each is asked for by itself, so that it stops no other.
            answers = _Answers([{"status": "failed"}] * len(names), {})
        return await asyncio.gather(
            *(
                self._result(package_set, system, name, answer, answers.attributes)
                for name, answer in zip(names, answers.results, strict=True)
            )
        )

    async def _result(
        self,
        package_set: PackageSet,
        system: str,
        name: AttributePath,
        answer: dict[str, Any],
        attributes: Mapping[str, list[str]],
    ) -> Package | PackageProblem:
        if answer["status"] == "failed":
            try:
                explained = await self._ask(package_set, system, [name], explain=True)
            except _Refused as refused:
                return _failure(name, system, refused.message, package_set)
            [answer], attributes = explained.results, explained.attributes
        match answer["status"]:
            case "package":
                return Package.from_json(answer)
            case "missing":
                return await asyncio.to_thread(_missing, name, answer, attributes)
            case _:
                return _wrong_kind(name, answer)

    async def _ask(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath], *, explain: bool
    ) -> _Answers:
        request = {
            "packageSet": str(package_set.directory),
            "system": system,
            "names": [list(name.parts) for name in names],
            "explain": explain,
        }
        log = LogReader()
        with as_file(files("nixery_snap.evaluation") / "resolve.nix") as expression:
            async with self._processes:
                try:
                    finished = await self._nix.run(
                        "nix-instantiate",
                        *("--eval", "--strict", "--json", "--read-write-mode"),
                        *("--option", "allow-import-from-derivation", "false"),
                        *("--argstr", "request", json.dumps(request)),
                        str(expression),
                        timeout_seconds=self._timeout_seconds,
                        on_stderr=log.feed,
                    )
                except TimeoutError:
                    raise EvaluationTimedOut(self._timeout_seconds) from None
        if finished.returncode != 0:
            raise _Refused(log.errors[-1] if log.errors else "\n".join(log.plain) or "Nix gave no reason")
        return _Answers(**json.loads(finished.stdout))


@dataclass(frozen=True, slots=True)
class _Answers:
    """What resolve.nix answers."""

    results: list[dict[str, Any]]
    attributes: dict[str, list[str]]


class _Refused(Exception):
    """The evaluation stopped with an error."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def _whole_set_error(message: str, package_set: PackageSet) -> EvaluationFailed | NixTooOld:
    if _TOO_OLD.search(message):
        return NixTooOld(" ".join(message.split())[:_MESSAGE_LENGTH])
    return EvaluationFailed(_public(message, package_set))


def _failure(name: AttributePath, system: str, message: str, package_set: PackageSet) -> PackageProblem:
    kind = next((kind for pattern, kind in _META_PROBLEMS if pattern.search(message)), ProblemKind.FAILED)
    reason = " ".join(_public(message, package_set).split())
    match kind:
        case ProblemKind.UNFREE:
            text = f"it is unfree, and this registry serves free packages only: {reason}"
        case ProblemKind.BROKEN:
            text = f"its package set says that it does not build: {reason}"
        case ProblemKind.INSECURE:
            text = f"it has known security holes: {reason}"
        case ProblemKind.UNSUPPORTED_SYSTEM:
            text = f"it is not made for {system}: {reason}"
        case _:
            text = f"it does not evaluate: {reason}"
    return PackageProblem(str(name), kind, text)


def _missing(
    name: AttributePath, answer: dict[str, Any], attributes: Mapping[str, list[str]]
) -> PackageProblem:
    """`attributes` has the names of each set in which something is missing, by its path as Nix writes JSON."""
    path = tuple(answer["path"])
    where = f"in {AttributePath(path)}" if path else "in the package set"
    names = attributes[json.dumps(path, separators=(",", ":"), ensure_ascii=False)]
    close = process.extract(
        answer["name"].lower(),
        names,
        scorer=fuzz.ratio,
        processor=str.lower,
        limit=_SUGGESTIONS,
        score_cutoff=75,
    )
    suggestions = tuple(str(AttributePath((*path, match))) for match, _, _ in close)
    message = f"there is no package {answer['name']} {where}"
    return PackageProblem(str(name), ProblemKind.MISSING, message, suggestions)


def _wrong_kind(name: AttributePath, answer: dict[str, Any]) -> PackageProblem:
    kind = {"lambda": "function", "int": "number", "float": "number", "bool": "boolean"}.get(
        answer["kind"], answer["kind"]
    )
    message = f"{AttributePath(tuple(answer['path']))} is a {kind}, not a package"
    if answer["examples"]:
        examples = ", ".join(answer["examples"][:5])
        message += f"; name one of its attributes instead, as {name}.NAME; it has {examples}"
        if len(answer["examples"]) > 5:
            message += " …"
    return PackageProblem(str(name), ProblemKind.WRONG_KIND, message)


def _public(message: str, package_set: PackageSet) -> str:
    """What Nix's message says, without what its reader cannot do and without paths of the server's disk."""
    paragraph = _ADVICE.split(message.strip(), maxsplit=1)[0].strip()[:_MESSAGE_LENGTH]
    return paragraph.replace(str(package_set.directory), "<source>").replace(
        str(package_set.directory.parent), "<outside the source>"
    )
