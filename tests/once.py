"""What is made once in a run of all the tests, by however many workers they are run."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

VARIABLE = "TESTS_SHARED_DIRECTORY"


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A directory: whichever worker needs it first makes it, and the others wait. To change it, copy it."""
    directory = Path(os.environ[VARIABLE]) / name
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = directory.with_suffix(".made")
        if not made.exists():
            shutil.rmtree(directory, ignore_errors=True)  # of an attempt that failed
            make(directory)
            made.touch()
    return directory
