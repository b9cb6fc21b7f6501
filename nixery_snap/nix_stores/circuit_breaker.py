"""Leaves a server alone that has failed several times in a row, so that it costs nobody any time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

FAILURES: Final = 3
OPEN_SECONDS: Final = 30.0


class CircuitOpen(Exception):
    """Not now: `reason` is that of the last failure."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class CircuitBreaker:
    """FAILURES in a row open it for OPEN_SECONDS; then it lets one trial through at a time until one succeeds.

    `on_open` is told the reason whenever it opens.
    """

    def __init__(self, on_open: Callable[[str], object], now: Callable[[], float] = time.monotonic) -> None:
        self._on_open, self._now = on_open, now
        self._failures = 0
        self._open_until = 0.0
        self._on_trial = False
        self._reason = ""

    @property
    def is_sound(self) -> bool:
        """Whether the last attempt went well, or there was none."""
        return not self._failures

    def begin(self) -> bool:
        """Whether this attempt is the trial, which must be ended. Raises CircuitOpen."""
        if self._failures < FAILURES:
            return False
        if self._on_trial or self._now() < self._open_until:
            raise CircuitOpen(self._reason)
        self._on_trial = True
        return True

    def check(self) -> None:
        """For attempts that are not the trial: raises CircuitOpen when others have opened it meanwhile."""
        if self._failures >= FAILURES:
            raise CircuitOpen(self._reason)

    def end_trial(self) -> None:
        self._on_trial = False

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, reason: str) -> None:
        self._failures += 1
        self._reason = reason
        if self._failures >= FAILURES:
            was_open, self._open_until = self._now() < self._open_until, self._now() + OPEN_SECONDS
            if not was_open:
                self._on_open(reason)
