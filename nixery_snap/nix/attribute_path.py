"""Attribute paths: a tuple inside, Nix's dotted notation at the edge (`python3Packages.requests`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from nixery_snap.errors import InvalidFormat

MAX_LENGTH: Final = 255
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_'+-]*")
_PART: Final = re.compile(rf'({_PLAIN.pattern})|"([^"\\\x00-\x1f]+)"')


@dataclass(frozen=True, slots=True, order=True)
class AttributePath:
    """One or more attribute names, from the package set's top level down."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `a.b.c`; a name that is not plain stands in double quotes. Raises InvalidFormat."""
        if len(text) > MAX_LENGTH:
            raise InvalidFormat("attribute path", text, f"longer than {MAX_LENGTH} characters")
        parts: list[str] = []
        position = 0
        while match := _PART.match(text, position):
            parts.append(match[1] or match[2])
            position = match.end()
            if position == len(text):
                return cls(tuple(parts))
            if text[position] != ".":
                break
            position += 1
        raise InvalidFormat(
            "attribute path", text, f"an attribute name is expected at character {position + 1}"
        )

    def __str__(self) -> str:
        return ".".join(part if _PLAIN.fullmatch(part) else f'"{part}"' for part in self.parts)
