"""Who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ANONYMOUS_NAME: Final = "anonymous"  # in rules
CATALOGUE: Final = "_catalog"  # among `repositories`, the list of all; none of them can have that name


@dataclass(frozen=True, slots=True)
class Identity:
    """`user` is empty for whoever shows no credentials, and `ISSUER:NAME` for an issuer's.

    `claims` are those of an issuer's token. `repositories`: the names that a token of ours is good for; None for
    credentials that are not so narrow.
    """

    user: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    repositories: frozenset[str] | None = None

    @property
    def is_anonymous(self) -> bool:
        return not self.user


ANONYMOUS: Final = Identity()


class WrongCredentials(Exception):
    """They are malformed, expired, of somebody else or nobody's: which of these is not told."""


Identify = Callable[[Sequence[str], str], Awaitable[Identity]]
"""From the values of all Authorization headers, and the client that failures are counted for, to who it is.

Raises WrongCredentials, TooManyRequests, IssuerUnreachable.
"""
