"""How often a client may do something."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from cachetools import LRUCache

from nixery_snap.errors import TooManyRequests

_CLIENTS: Final = 65536
_MOST_MISSING: Final = (
    10  # times the amount: who takes at one time what he was allowed once each waits no longer
)


class RateLimit:
    """For each client a bucket of `amount` that fills within `seconds`; an `amount` of 0 is no limit.

    Clients that were not seen for longest are forgotten first. `reason` is what one is told.
    """

    def __init__(
        self, amount: int, seconds: float, reason: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._amount, self._seconds, self._reason, self._clock = amount, seconds, reason, clock
        self._buckets: LRUCache[str, tuple[float, float]] = LRUCache(_CLIENTS)  # what is left, and since when

    def check(self, client: str) -> None:
        """Raises TooManyRequests when nothing is left."""
        left = self._left(client)
        if self._amount and left < 1:
            wait = (1 - left) * self._seconds / self._amount
            raise TooManyRequests(self._reason, max(1, math.ceil(wait)))

    def take(self, client: str) -> None:
        """What is not there can be taken too: it is missing later."""
        if self._amount:
            least = -_MOST_MISSING * self._amount
            self._buckets[client] = max(self._left(client) - 1, least), self._clock()

    def _left(self, client: str) -> float:
        left, since = self._buckets.get(client, (self._amount, 0.0))
        return min(self._amount, left + (self._clock() - since) * self._amount / max(self._seconds, 1e-9))
