"""Tells whether anything below a directory has changed, without reading the directory again (inotify(7))."""

from __future__ import annotations

import os
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

    def __init__(self, root: Path, directories: list[str]) -> None:
        """Watches `root` and what is below it at the relative paths `directories`, not what is below those.

        Raises OSError where the kernel has no watches left, or is not Linux.
        """
        if sys.platform != "linux":
            raise OSError("no inotify on this system")
        self._root = root
        self._inotify = INotify(nonblocking=True)
        self._changed = False
        self._events = select.poll()
        self._events.register(self._inotify, select.POLLIN)
        # Taken first: should the root change hands meanwhile, the two differ for ever.
        self._inode = _inode(root)
        try:
            for directory in (root, *(root / name for name in directories)):
                self._inotify.add_watch(directory, _MASK)
        except OSError:
            self.close()
            raise

    def quiet(self) -> bool:
        """Whether nothing has changed yet. Waits for nothing; costs a microsecond or two."""
        # inotify follows an inode, not a name: the root may be a link, or below one, that now leads elsewhere.
        self._changed = self._changed or bool(self._events.poll(0)) or _inode(self._root) != self._inode
        return not self._changed

    def close(self) -> None:
        self._changed = True
        self._inotify.close()


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 # Path.stat is slower, and this is asked for every request
    except OSError:
        return None
    return status.st_dev, status.st_ino
