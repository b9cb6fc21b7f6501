"""Kills a registry at random moments, again and again: nothing wrong may be left behind. No benchmark, only long."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from pathlib import Path

from harness import EXAMPLES, REPOSITORY, need, work_directory

sys.path.insert(0, str(REPOSITORY))
from tests.integration.crashes import crash
from tests.integration.nixtools import ChrootStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    need("nix-store", "nix-build", "nix-instantiate", "nix", "busybox")
    with work_directory() as directory:
        store = ChrootStore.create(directory / "store")
        store.build("allGood")
        source = Path(shutil.copytree(EXAMPLES, directory / "packages"))
        crash(directory, store, source, options.rounds, options.seed, lambda line: print(line, flush=True))
    print(f"{options.rounds} times killed, nothing wrong")


if __name__ == "__main__":
    main()
