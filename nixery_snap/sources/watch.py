"""Tells whether anything below a directory has changed, without reading the directory again (inotify(7))."""

from __future__ import annotations

import select
import sys
from pathlib import Path
from typing import Final

if sys.platform == "linux":
    from inotify_simple import INotify, flags

    _MASK: Final = (
        flags.ATTRIB | flags.CREATE | flags.DELETE | flags.DELETE_SELF | flags.MODIFY
        | flags.MOVED_FROM | flags.MOVED_TO | flags.MOVE_SELF | flags.ONLYDIR
    )  # fmt: skip


class DirectoryWatch:
    """Watches directories from its creation on. One change is all it can tell: then make a new one.

    The kernel queues an event before the call that caused it returns, so whoever edits a file and then asks
    is answered rightly.
    """

    def __init__(self, directories: list[Path]) -> None:
        """Raises OSError where the kernel has no watches left, or is not Linux."""
        if sys.platform != "linux":
            raise OSError("no inotify on this system")
        self._inotify = INotify(nonblocking=True)
        self._changed = False
        self._events = select.poll()
        self._events.register(self._inotify, select.POLLIN)
        try:
            for directory in directories:
                self._inotify.add_watch(directory, _MASK)
        except OSError:
            self.close()
            raise

    def quiet(self) -> bool:
        """Whether nothing has changed yet. Never blocks."""
        # Every request for a tag asks this: a poll is a third of a read that fails.
        self._changed = self._changed or bool(self._events.poll(0))
        return not self._changed

    def close(self) -> None:
        self._changed = True
        self._inotify.close()
