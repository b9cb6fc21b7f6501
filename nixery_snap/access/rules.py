"""Rules: who may do what with which packages of which sources.

Something is allowed when a rule allows it and none denies it. A rule that says nothing about packages or tags is
about all of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nixery_snap.access.identity import ANONYMOUS_NAME, Identity
from nixery_snap.nix.attribute_path import AttributePath


class Action(StrEnum):
    PULL = "pull"
    """Images, and the tags there are."""
    FETCH = "fetch"
    """Store paths, from the binary cache."""
    SEARCH = "search"
    """Looking for packages."""


class Patterns:
    """Texts in which `*` stands for anything."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.texts = tuple(patterns)
        self._expression = re.compile("|".join(map(self._translated, self.texts)) or "(?!)", re.DOTALL)

    def __contains__(self, text: str) -> bool:
        return self._expression.fullmatch(text) is not None

    @staticmethod
    def _translated(pattern: str) -> str:
        return ".*".join(map(re.escape, pattern.split("*")))


class PackagePatterns(Patterns):
    """Attribute paths: `*` stands for anything within one name, `**` for any path.

    Spellings that an image name does not tell apart are one: capitals, and the underscore before a digit.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        super().__init__(map(_folded, patterns))

    @property
    def has_all(self) -> bool:
        return "**" in self.texts

    def matches(self, path: AttributePath) -> bool:
        return _folded(str(path)) in self

    def matches_above(self, path: AttributePath) -> bool:
        """Also when a set or package is meant that `path` is a part of."""
        return any(self.matches(AttributePath(path.parts[:end])) for end in range(1, len(path.parts) + 1))

    @staticmethod
    def _translated(pattern: str) -> str:
        return ".*".join(r"[^.]*".join(map(re.escape, part.split("*"))) for part in pattern.split("**"))


def _folded(text: str) -> str:
    return ".".join(part.lstrip("_") for part in text.lower().split("."))


@dataclass(frozen=True, slots=True)
class Rule:
    """About somebody whom `users` names and who has, of each of `claims`, one of its values."""

    allows: bool
    users: Patterns
    claims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    actions: frozenset[Action] = frozenset(Action)
    sources: Patterns = field(default_factory=lambda: Patterns("*"))
    packages: PackagePatterns = field(default_factory=lambda: PackagePatterns(["**"]))
    tags: Patterns = field(default_factory=lambda: Patterns("*"))

    def is_about(self, who: Identity) -> bool:
        """The name of whoever has none must be written out: `*` does not mean it."""
        known = ANONYMOUS_NAME in self.users.texts if who.is_anonymous else who.user in self.users
        return known and all(_has(who.claims.get(name), wanted) for name, wanted in self.claims.items())


def _has(value: object, wanted: Collection[str]) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(one in wanted for one in values if isinstance(one, str))


class Rules:
    """All rules together. A tag of None is one that cannot be known: then any that is allowed will do."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(rules)

    @property
    def claims(self) -> frozenset[str]:
        """Those that some rule looks at."""
        return frozenset(name for rule in self._rules for name in rule.claims)

    def any(self, who: Identity) -> bool:
        """Whether there is anything that is allowed."""
        return any(rule.allows and rule.is_about(who) for rule in self._rules)

    def image(self, who: Identity, source: str, packages: Collection[AttributePath], tag: str | None) -> bool:
        """Whether an image of `packages` may be pulled."""
        rules = self._about(who, Action.PULL, source, tag)
        if any(
            rule.packages.matches_above(package)
            for rule in rules
            if not rule.allows and (tag is not None or "*" in rule.tags.texts)
            for package in packages
        ):
            return False
        return all(
            any(rule.allows and rule.packages.matches(package) for rule in rules) for package in packages
        )

    def search(self, who: Identity, source: str, tag: str) -> bool:
        """Only for those who may have every package: what is found tells of any."""
        rules = self._about(who, Action.SEARCH, source, tag)
        return any(rule.packages.has_all for rule in rules) and all(rule.allows for rule in rules)

    def fetch(self, who: Identity, source: str) -> bool:
        """A store path tells neither package nor tag: what denies some of a source does not count, nor all of it."""
        rules = self._about(who, Action.FETCH, source, None)
        denied = any(not rule.allows and rule.packages.has_all and "*" in rule.tags.texts for rule in rules)
        return not denied and any(rule.allows for rule in rules)

    def _about(self, who: Identity, action: Action, source: str, tag: str | None) -> list[Rule]:
        return [
            rule
            for rule in self._rules
            if action in rule.actions
            and source in rule.sources
            and (tag is None or tag in rule.tags)
            and rule.is_about(who)
        ]
