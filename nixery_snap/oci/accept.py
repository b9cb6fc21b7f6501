"""What a client takes, in the words of its Accept header (RFC 9110, sections 12.4.2 and 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

_MAX_RANGES: Final = 64  # of one header; clients name about ten
_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class Accept:
    """`ranges` are lower-cased media ranges with their qualities, 0 to 1; none at all accepts anything."""

    ranges: Mapping[str, float]

    @classmethod
    def parse(cls, header: str) -> Self:
        """What is malformed accepts nothing: a request is not refused for it."""
        ranges: dict[str, float] = {}
        for text in header.split(",", _MAX_RANGES)[:_MAX_RANGES]:
            media_range, *parameters = (part.strip().lower() for part in text.split(";"))
            if "/" in media_range:
                ranges[media_range] = max(_quality(parameters), ranges.get(media_range, 0.0))
        return cls(ranges if ranges or header.strip() else {"*/*": 1.0})

    def names(self, media_type: str) -> bool:
        """Whether it is accepted by its own name, not by a wildcard that hides what the client can read."""
        return self.ranges.get(media_type, 0.0) > 0

    def refuses(self, media_type: str) -> bool:
        """Whether it is named and not accepted."""
        return self.ranges.get(media_type) == 0

    def quality(self, media_type: str) -> float:
        """By the most specific range that it falls under; 0 is not accepted."""
        kind = media_type.partition("/")[0]
        for media_range in (media_type, f"{kind}/*", "*/*"):
            if media_range in self.ranges:
                return self.ranges[media_range]
        return 0.0

    def best(self, media_types: Iterable[str]) -> str:
        """The one that the client likes best, of equals the first. What it takes none of is decided as well."""
        return max(media_types, key=self.quality)


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return float(value) if _QUALITY.fullmatch(value.strip()) else 0.0
    return 1.0
