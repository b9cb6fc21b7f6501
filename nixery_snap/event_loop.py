"""Runs the program's coroutines."""

from __future__ import annotations

import gc
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import uvloop

T = TypeVar("T")
# Of what a request makes next to nothing is a cycle, and looking for some after each 700 new objects takes a twentieth
# of the time.
_NEW_OBJECTS: Final = 20_000


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises, on uvloop; for all of a process, whose garbage is looked for less often."""
    gc.freeze()  # the modules stay
    gc.set_threshold(_NEW_OBJECTS)
    return uvloop.run(work)
