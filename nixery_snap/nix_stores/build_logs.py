"""Logs of builds, where the local Nix store keeps them (Nix, src/libstore/log-store.cc)."""

from __future__ import annotations

import bz2
from pathlib import Path
from typing import Final

from nixery_snap.nix.store_path import StorePath

_MAX_BYTES: Final = 64 * 1024 * 1024


class BuildLogs:
    """`root` is the directory that physically holds `nix/store`."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "nix/var/log/nix/drvs"

    def read(self, drv_path: StorePath) -> bytes | None:
        """Blocking. What the builder printed; None without a log, or with one that is too large to keep."""
        name = drv_path.base_name
        plain = self._directory / name[:2] / name[2:]
        try:
            with bz2.open(f"{plain}.bz2") as file:
                text = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            try:
                with plain.open("rb") as file:
                    text = file.read(_MAX_BYTES + 1)
            except OSError:
                return None
        except (OSError, EOFError):
            return None  # being written
        return text if len(text) <= _MAX_BYTES else None
