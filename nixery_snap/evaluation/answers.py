"""What becomes of the answers of resolve.nix and of Nix's error messages."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rapidfuzz import fuzz, process

from nixery_snap.errors import (
    EXAMPLES,
    EvaluationFailed,
    ExperimentalFeatureMissing,
    InvalidFormat,
    NixError,
    NixTooOld,
    PackageProblem,
    ProblemKind,
)
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import Package, PackageSet

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
_OUTPUT_NAME: Final = re.compile(r"[0-9A-Za-z+\-._?=]+")
_TOO_OLD: Final = re.compile(r"requires (an implementation of Nix|Nix (version )?>)", re.IGNORECASE)
# Nix, src/libutil/experimental-features.cc (`experimental Nix feature 'flakes' is disabled`); one that it has never
# heard of shows as what it would have added.
_FEATURE: Final = re.compile(r"experimental (?:Nix )?feature '([a-z0-9-]+)' is disabled")
_NO_FLAKES: Final = re.compile(r"attribute 'getFlake' missing")
# The collector's own words, or Nix's.
OUT_OF_MEMORY: Final = re.compile(r"^GC Warning: Out of Memory|out of memory(\"}|$)|bad_alloc", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answers:
    """What resolve.nix answers."""

    results: list[dict[str, Any]]
    attributes: dict[str, list[str]]

    @classmethod
    def parse(cls, text: bytes) -> Answers:
        # Text of Nix is bytes, in whatever encoding.
        return cls(**json.loads(text.decode(errors="replace")))


class Refused(Exception):
    """The evaluation stopped with an error."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def whole_set_error(message: str, package_set: PackageSet) -> NixError:
    if _TOO_OLD.search(message):
        return NixTooOld(_line(message))
    if feature := _FEATURE.search(message):
        return ExperimentalFeatureMissing(feature[1])
    if package_set.is_flake and _NO_FLAKES.search(message):
        return ExperimentalFeatureMissing("flakes")
    return EvaluationFailed(_public(message, package_set))


async def result(
    name: AttributePath, answer: dict[str, Any], attributes: Mapping[str, list[str]]
) -> Package | PackageProblem:
    """`answer` is one of resolve.nix for `name` that has not failed."""
    match answer["status"]:
        case "package":
            return _package(name, answer)
        case "missing":
            return await asyncio.to_thread(_missing, name, answer, attributes)
        case _:
            return _wrong_kind(name, answer)


def _package(name: AttributePath, answer: dict[str, Any]) -> Package | PackageProblem:
    """A package set can say anything of its packages, and this ends up in arguments of Nix's programs."""
    try:
        if not StorePath.parse(answer["drvPath"]).name.endswith(".drv"):
            raise InvalidFormat("derivation", answer["drvPath"], "its name does not end with .drv")
        for output in answer["outputs"]:
            if not _OUTPUT_NAME.fullmatch(output):
                raise InvalidFormat("output name", output, "it has characters that Nix has no use for")
        return Package.from_json(answer)
    except InvalidFormat as error:
        return PackageProblem(str(name), ProblemKind.FAILED, f"it is no package of Nix's: {error}")


def failure(name: AttributePath, system: str, message: str, package_set: PackageSet) -> PackageProblem:
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
        message += f"; name one of its attributes instead, as {name}.NAME{EXAMPLES}{examples}"
        if len(answer["examples"]) > 5:
            message += " …"
    return PackageProblem(str(name), ProblemKind.WRONG_KIND, message)


def _public(message: str, package_set: PackageSet) -> str:
    """What Nix's message says, without what its reader cannot do and without paths of the server's disk."""
    paragraph = _ADVICE.split(message.strip(), maxsplit=1)[0].strip()[:_MESSAGE_LENGTH]
    return paragraph.replace(str(package_set.directory), "<source>").replace(
        str(package_set.directory.parent), "<outside the source>"
    )


def _line(message: str) -> str:
    return " ".join(message.split())[:_MESSAGE_LENGTH]
