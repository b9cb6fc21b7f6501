"""flake.nix without nixpkgs: it parses, and its outputs are what pyproject.toml says."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SYSTEMS = {"x86_64-linux", "aarch64-linux"}
# What Nix makes or what was made for the tests, not what the repository holds.
NOT_OURS = {".git", ".venv", ".nixery-snap", ".test-tools"}

# The outputs as `nix flake` would compute them, then what the tests look at.
EXPRESSION = """
let
  flake = import (/. + "@root@/flake.nix");
  nixpkgs = import (/. + "@root@/tests/data/stub-nixpkgs");
  self = flake.outputs { inherit self nixpkgs; };
  eachSystem = f: outputs: builtins.mapAttrs (_: f) outputs;
in {
  names = builtins.attrNames self;
  packages = eachSystem (packages: builtins.mapAttrs (_: p: {
    inherit (p) pname version;
    buildSystem = map (d: d.name) p.arguments.build-system;
    dependencies = map (d: d.name) p.arguments.dependencies;
    files = map toString p.arguments.src.fileset;
    inherit (p.meta) mainProgram;
    path = p.arguments.makeWrapperArgs;
    imports = p.arguments.pythonImportsCheck;
  }) packages) self.packages;
  apps = eachSystem (apps: { inherit (apps.default) type program; }) self.apps;
  devShells = eachSystem (shells: map (p: p.name) shells.default.packages) self.devShells;
  checks = eachSystem builtins.attrNames self.checks;
  formatter = eachSystem (p: p.type) self.formatter;
}
"""

NixInstantiate = Callable[..., str]


@pytest.fixture(scope="module")
def nix_instantiate(tmp_path_factory: pytest.TempPathFactory) -> NixInstantiate:
    """Run nix-instantiate on a store and a home of its own; its output."""
    if shutil.which("nix-instantiate") is None:
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        absent("not installed: nix-instantiate")
    home = tmp_path_factory.mktemp("nix")
    env = {**os.environ, "HOME": str(home), "NIX_CONFIG": "build-users-group =\nsubstituters ="}

    def run(*arguments: str | Path) -> str:
        command = ["nix-instantiate", "--store", home / "store", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def outputs(nix_instantiate: NixInstantiate) -> dict[str, Any]:
    expression = EXPRESSION.replace("@root@", str(ROOT))
    answer: dict[str, Any] = json.loads(nix_instantiate("--eval", "--strict", "--json", "-E", expression))
    return answer


def test_every_nix_file_parses(nix_instantiate: NixInstantiate) -> None:
    files = [f for f in ROOT.rglob("*.nix") if not NOT_OURS.intersection(f.relative_to(ROOT).parts)]
    assert {"flake.nix", "package.nix", "default.nix"} <= {f.name for f in files}
    nix_instantiate("--parse", *files)


def test_there_is_every_kind_of_output_for_every_system(outputs: dict[str, Any]) -> None:
    kinds = {"packages", "apps", "devShells", "checks", "formatter"}
    assert set(outputs["names"]) == kinds
    for kind in kinds:
        assert set(outputs[kind]) == SYSTEMS, kind


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_the_package_is_what_pyproject_says(outputs: dict[str, Any], system: str) -> None:
    package = outputs["packages"][system]["default"]
    assert package == outputs["packages"][system]["nixery-snap"]
    assert package["pname"] == PROJECT["name"]
    assert package["version"] == PROJECT["version"]
    assert package["dependencies"] == [re.split(r"[^\w.-]", d)[0] for d in PROJECT["dependencies"]]
    assert package["buildSystem"] == ["grpcio-tools", "hatchling"]
    assert package["mainProgram"] in PROJECT["scripts"]
    assert package["imports"] == [PROJECT["scripts"][package["mainProgram"]].split(":")[0]]
    assert str(ROOT / "nixery_snap") in package["files"]


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_what_runs_is_the_package(outputs: dict[str, Any], system: str) -> None:
    assert outputs["apps"][system]["type"] == "app"
    assert re.fullmatch(r"/nix/store/\w+-nixery-snap/bin/nixery-snap", outputs["apps"][system]["program"])
    # The command line calls Nix: it must be there even where it is not installed.
    assert re.fullmatch(
        r"--suffix PATH : /nix/store/\w+-nix/bin", outputs["packages"][system]["default"]["path"][0]
    )
    assert outputs["checks"][system] == ["package"]
    assert {"nix", "python3", "skopeo"} <= set(outputs["devShells"][system])
    assert outputs["formatter"][system] == "derivation"
