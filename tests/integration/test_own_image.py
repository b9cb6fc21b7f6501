"""deploy/container/build: the registry's own image, of a make-believe nixpkgs."""

from pathlib import Path

from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.processes import run
from tests.integration.runtimes.oci_bundle import unpack
from tests.integration.server import Registry

SCRIPT = Path(__file__).parents[2] / "deploy/container/build"
NIXPKGS = """
{ system, config, overlays }:
let
  base = import (/. + "@examples@") { inherit system config; };
  packages = base // {
    nix = base.hello;
    gitMinimal = base.git;
    openssh = base.hello;
    callPackage = file: _: assert (builtins.functionArgs (import file)) ? python3Packages; base.which;
  };
in
builtins.foldl' (all: overlay: all // overlay all all) packages overlays
"""


def test_the_program_makes_its_own_image(directory: Path, prepared_store: ChrootStore) -> None:
    nixpkgs = directory / "nixpkgs"
    nixpkgs.mkdir()
    (nixpkgs / "default.nix").write_text(NIXPKGS.replace("@examples@", str(EXAMPLES)))
    archive, layout = directory / "image.tar", directory / "layout"
    registry = Registry(directory / "state", prepared_store.root)
    flags = ["--storage", f"file://{directory}/storage", "--store", prepared_store.root]
    run(SCRIPT, nixpkgs, archive, *flags, env=registry.program_env)
    layout.mkdir()
    run("tar", "-xf", archive, "-C", layout)
    programs = {
        path.name for path in (unpack(f"{layout}:latest", directory / "bundle").rootfs / "bin").iterdir()
    }
    assert {"which", "hello", "git", "bash", "ls"} <= programs
