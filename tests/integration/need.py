"""What a test needs of the machine: absent is a failure in CI and a skip elsewhere."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

# Nix of today, where scripts/test-nix could unpack it.
NIX_2_26 = Path(__file__).parents[2] / ".test-tools" / "nix-2.26" / "bin"

# Debian keeps runc, dockerd and nginx where an ordinary user's PATH does not look.
os.environ["PATH"] = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
)


def absent(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: CI must have it", pytrace=False)
    pytest.skip(what)


def need(*tools: str) -> None:
    """Every one of these programs must be on PATH."""
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        absent(f"not installed: {', '.join(missing)}")


def need_nix_2_26() -> Path:
    """Where its programs lie."""
    need("nix-store")
    return need_file(NIX_2_26 / "nix").parent


def need_root() -> None:
    if os.geteuid() != 0:
        absent("needs root")


def need_file(path: Path) -> Path:
    if not path.exists():
        absent(f"not there: {path}")
    return path
