"""Packages whose builds last as long as a test wants."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.integration.need import need

NAMES = [*"abcdefgh", "slow"]
# Each package says that its build has begun, and waits until it may end.
WAITS = """
{ ... }:
let
  make = name: derivation {
    inherit name; system = builtins.currentSystem; builder = "${./bin}/busybox";
    args = [ "sh" "-c" "echo > SIGNS/$name.began; until [ -e SIGNS/go ]; do $builder sleep 0.2; done; echo > $out" ];
  };
in builtins.listToAttrs (map (name: { inherit name; value = make name; }) [ NAMES ])
"""


def copy_busybox(directory: Path) -> None:
    """Builds in a private store see no other program, and restricted package sets may read no other."""
    need("busybox")
    (directory / "bin").mkdir()
    shutil.copy(Path(shutil.which("busybox") or "").resolve(), directory / "bin/busybox")


@dataclass(frozen=True)
class Builds:
    """Packages of these NAMES that are built once they may."""

    source: Path
    signs: Path

    @property
    def options(self) -> str:
        """Settings by which builds see the signs."""
        return f'[nix.options]\nextra-sandbox-paths = "{self.signs}"\n'

    @classmethod
    def create(cls, source: Path, signs: Path) -> "Builds":
        made = cls(source, signs)
        source.mkdir()
        signs.mkdir()
        copy_busybox(source)
        text = WAITS.replace("SIGNS", str(signs)).replace("NAMES", " ".join(f'"{name}"' for name in NAMES))
        (source / "default.nix").write_text(text)
        return made

    def began(self, name: str) -> bool:
        return (self.signs / f"{name}.began").exists()

    def go(self) -> None:
        (self.signs / "go").touch()
