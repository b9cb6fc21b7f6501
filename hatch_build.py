"""Generates Python code from protos/: a build hook of hatchling, and a command for work on a checkout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT: Final = Path(__file__).parent
# Where the files of a directory of protos go; this is also how they import each other.
PLACES: Final = {
    "protos": "nixery_snap/image_service/generated",
    "tests/support/protos": "tests/support/generated",
}
_INIT: Final = '"""Made from {} by hatch_build.py: do not edit."""\n'


class ProtosHook(BuildHookInterface[Any]):
    """Run before the package is built or installed as an editable one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(ROOT)


def generate(destination: Path) -> None:
    """All generated code, below `destination`. Files that stay the same are not touched."""
    for protos, place in PLACES.items():
        files = sorted((ROOT / protos).glob("*.proto"))
        if not files:  # source distributions have no tests
            continue
        (destination / place).mkdir(parents=True, exist_ok=True)
        (destination / place / "__init__.py").write_text(_INIT.format(protos))
        status = protoc.main(
            [
                "protoc",
                *(f"-I{virtual}={ROOT / real}" for real, virtual in PLACES.items()),
                f"-I{Path(protoc.__file__).parent / '_proto'}",
                f"--python_out={destination}",
                f"--pyi_out={destination}",
                *(f"{place}/{file.name}" for file in files),
            ]
        )
        if status:
            raise SystemExit(f"protoc: status {status}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
