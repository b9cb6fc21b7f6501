"""Store paths: `/nix/store/<hash part>-<name>` (Nix manual, "Store Path")."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.base32 import ALPHABET

STORE_DIR: Final = "/nix/store"
# Names that Nix takes for `.` or `..`, with or without more after a '-', are none.
_BASE_NAME: Final = re.compile(rf"([{ALPHABET}]{{32}})-((?!\.\.?(?:-|\Z))[0-9A-Za-z+\-._?=]{{1,211}})")


class StorePath(NamedTuple):
    """A direct child of the store directory. Ordered like its text.

    A tuple, as thousands of them are hashed and compared for each closure.
    """

    hash_part: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the full path; raises InvalidFormat."""
        directory, _, base_name = text.rpartition("/")
        if directory != STORE_DIR:
            raise InvalidFormat("store path", text, f"it must be a direct child of {STORE_DIR}")
        return cls.from_base_name(base_name)

    @classmethod
    def from_base_name(cls, base_name: str) -> Self:
        """From `<hash part>-<name>`, as narinfos and listings of the store give it; raises InvalidFormat."""
        match = _BASE_NAME.fullmatch(base_name)
        if match is None:
            raise InvalidFormat(
                "store path", base_name, "it must be 32 characters of base 32, '-' and a name"
            )
        return cls(*match.groups())

    @property
    def base_name(self) -> str:
        return f"{self.hash_part}-{self.name}"

    def __str__(self) -> str:
        return f"{STORE_DIR}/{self.hash_part}-{self.name}"


def store_path_of(path: str) -> tuple[StorePath, str] | None:
    """Split an absolute, normalised path into its store path and the rest; None outside the store."""
    if not path.startswith(STORE_DIR + "/"):
        return None
    base_name, _, rest = path[len(STORE_DIR) + 1 :].partition("/")
    try:
        return StorePath.from_base_name(base_name), rest
    except InvalidFormat:
        return None
