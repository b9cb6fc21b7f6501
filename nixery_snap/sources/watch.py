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
    _WAY_MASK: Final = flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF | flags.DONT_FOLLOW

_MAX_WAY: Final = 200  # far more than Linux follows


class DirectoryWatch:
    """Watches directories from its creation on. One change is all it can tell: then make a new one.

    The kernel queues an event before the call that caused it returns, so whoever edits a file and then asks
    is answered rightly.
    """

    def __init__(self, root: Path, directories: list[str]) -> None:
        """Watches `root` and what is below it at the relative paths `directories`, not what is below those.

        Raises OSError where the kernel has no watches left, or is not Linux.
        """
        if sys.platform != "linux":
            raise OSError("no inotify on this system")
        self._inotify = INotify(nonblocking=True)
        self._changed = False
        self._events = select.poll()
        self._events.register(self._inotify, select.POLLIN)
        try:
            # inotify follows inodes, not names: the root may be a link, or below one, and be led elsewhere.
            way = _way(root)
            for place in way:
                self._inotify.add_watch(place, _WAY_MASK)
            for directory in (root, *(root / name for name in directories)):
                self._inotify.add_watch(directory, _MASK)
            self._changed = _way(root) != way
        except OSError:
            self.close()
            raise

    def quiet(self) -> bool:
        """Whether nothing has changed yet. Waits for nothing; costs a microsecond."""
        # Every request for a tag asks this: a poll is a third of a read that fails.
        self._changed = self._changed or bool(self._events.poll(0))
        return not self._changed

    def close(self) -> None:
        self._changed = True
        self._inotify.close()


def _way(path: Path) -> list[Path]:
    """The directories and links that the kernel passes on its way to `path`, which is absolute."""
    way: list[Path] = []
    here = Path("/")
    pending = list(reversed(path.parts[1:]))
    while pending and len(way) < _MAX_WAY:
        part = pending.pop()
        place = here / part
        if part == "..":
            here = here.parent
        elif place.is_symlink():
            way.append(place)
            target = place.readlink()
            here = Path("/") if target.is_absolute() else here
            pending.extend(reversed(target.parts[target.is_absolute() :]))
        else:
            way.append(place)
            here = place
    return way
