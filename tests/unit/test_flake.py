"""flake.nix without nixpkgs: it parses, and its outputs are what pyproject.toml says."""

import ast
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
from packaging.requirements import Requirement

from nixery_snap.settings import load_settings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINUX = {"x86_64-linux", "aarch64-linux"}
DARWIN = {"x86_64-darwin", "aarch64-darwin"}
VM_TESTS = {"vm-docker", "vm-snapshotter", "vm-k3s", "vm-private-package", "vm-upgrade"}
# What Nix makes or what was made for the tests, not what the repository holds.
NOT_OURS = {".git", ".venv", ".nixery-snap", ".test-tools"}

# The outputs as `nix flake` would compute them, then what the tests look at.
EXPRESSION = """
let
  flake = import (/. + "@root@/flake.nix");
  nixpkgs = import (/. + "@root@/tests/data/stub-nixpkgs");
  nix-snapshotter.packages = nixpkgs.lib.mapAttrs
    (_: pkgs: { default = pkgs.nix-snapshotter // { name = "of-its-flake"; }; })
    nixpkgs.legacyPackages;
  self = flake.outputs { inherit self nixpkgs nix-snapshotter; };
  eachSystem = f: outputs: builtins.mapAttrs (_: f) outputs;
  plain = import (/. + "@root@") { pkgs = nixpkgs.legacyPackages.x86_64-linux; };
  evaluate = kind: modules: (nixpkgs.lib.evaluate kind "x86_64-linux" modules).config;
  node = evaluate "nixos" [
    self.nixosModules.node
    { services.nixery-snap-node.enable = true; }
  ];
  both = evaluate "nixos" [
    self.nixosModules.default
    self.nixosModules.binary-cache
    plain.nixosModules.registry
    { services.nixery-snap.enable = true; }
  ];
in {
  inputs = builtins.attrNames flake.inputs;
  names = builtins.attrNames self;
  packages = eachSystem (packages: builtins.mapAttrs (_: p: {
    inherit (p) pname version;
    buildSystem = map (d: d.name) p.arguments.build-system;
    dependencies = map (d: d.name) p.arguments.dependencies;
    files = map toString p.arguments.src.fileset;
    inherit (p.meta) mainProgram;
    path = p.arguments.makeWrapperArgs;
    completion = p.arguments.postInstall;
    imports = p.arguments.pythonImportsCheck;
    tested = p.arguments.enabledTestPaths;
    untested = p.arguments.disabledTestPaths;
  }) packages) self.packages;
  apps = eachSystem (apps: { inherit (apps.default) type program; }) self.apps;
  devShells = eachSystem (shells: map (p: p.name) shells.default.packages) self.devShells;
  checks = eachSystem builtins.attrNames self.checks;
  vms = builtins.mapAttrs (_: test: {
    inherit (test) testScript;
    failures = nixpkgs.lib.concatMap (node: node.rendered.failures) (builtins.attrValues test.nodes);
    services = builtins.mapAttrs (_: node: builtins.attrNames node.systemd.services) test.nodes;
    files = builtins.mapAttrs (_: node: node.rendered.files) test.nodes;
  }) (removeAttrs self.checks.x86_64-linux [ "package" ]);
  formatter = eachSystem (p: p.type) self.formatter;
  overlay = (self.overlays.default nixpkgs.legacyPackages.x86_64-linux { }).nixery-snap.pname;
  modules = {
    nixos = builtins.attrNames self.nixosModules;
    home = builtins.attrNames self.homeModules;
    plain = [ (builtins.attrNames plain.nixosModules) (builtins.attrNames plain.homeModules) plain.nixery-snap.pname ];
    snapshotter = node.services.nixery-snap-node.snapshotter.package.name;
    failures = node.rendered.failures ++ both.rendered.failures;
    registry = both.services.nixery-snap.package.pname;
  };
  shell = map (p: p.name) (import (/. + "@root@/shell.nix") { pkgs = nixpkgs.legacyPackages.x86_64-linux; }).packages;
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
    assert {"flake.nix", "shell.nix", "package.nix", "registry.nix", "k3s.nix"} <= {f.name for f in files}
    nix_instantiate("--parse", *files)


def test_there_is_every_kind_of_output_for_every_system(outputs: dict[str, Any]) -> None:
    kinds = {"packages", "apps", "devShells", "checks", "formatter"}
    assert set(outputs["names"]) == kinds | {"overlays", "nixosModules", "homeModules"}
    for kind in kinds:
        assert set(outputs[kind]) == LINUX | DARWIN, kind


@pytest.mark.parametrize("system", sorted(LINUX | DARWIN))
def test_the_package_is_what_pyproject_says(outputs: dict[str, Any], system: str) -> None:
    package = outputs["packages"][system]["default"]
    assert package == outputs["packages"][system]["nixery-snap"]
    assert package["pname"] == PROJECT["name"]
    assert package["version"] == PROJECT["version"]
    environment = {"sys_platform": "linux" if system in LINUX else "darwin", "python_version": "3.13"}
    needed = [
        r for r in map(Requirement, PROJECT["dependencies"]) if not r.marker or r.marker.evaluate(environment)
    ]
    assert package["dependencies"] == [requirement.name for requirement in needed]
    assert package["buildSystem"] == ["grpcio-tools", "hatchling"]
    assert package["mainProgram"] in PROJECT["scripts"]
    assert package["imports"] == [PROJECT["scripts"][package["mainProgram"]].split(":")[0]]
    assert str(ROOT / "nixery_snap") in package["files"]
    # A test that is not there any more could not be left out.
    assert all((ROOT / path).exists() for path in [*package["tested"], *package["untested"]])


@pytest.mark.parametrize("system", sorted(LINUX | DARWIN))
def test_what_runs_is_the_package(outputs: dict[str, Any], system: str) -> None:
    assert outputs["apps"][system]["type"] == "app"
    assert re.fullmatch(r"/nix/store/\w+-nixery-snap/bin/nixery-snap", outputs["apps"][system]["program"])
    # The command line calls Nix: it must be there even where it is not installed.
    assert re.fullmatch(
        r"--suffix PATH : /nix/store/\w+-nix/bin", outputs["packages"][system]["default"]["path"][0]
    )
    assert "installShellCompletion --cmd nixery-snap" in outputs["packages"][system]["default"]["completion"]
    assert set(outputs["checks"][system]) == {"package"} | (VM_TESTS if system in LINUX else set())
    assert {"nix", "python3", "skopeo"} <= set(outputs["devShells"][system])
    assert outputs["formatter"][system] == "derivation"


def test_modules_come_with_their_packages(outputs: dict[str, Any]) -> None:
    modules = outputs["modules"]
    assert modules["nixos"] == ["binary-cache", "default", "node", "registry"]
    assert modules["home"] == ["default", "node"]
    assert modules["snapshotter"] == "of-its-flake"
    assert modules["failures"] == []
    assert modules["registry"] == outputs["overlay"] == "nixery-snap"


def test_there_is_a_way_without_flakes(outputs: dict[str, Any]) -> None:
    assert outputs["modules"]["plain"] == [["binary-cache", "node", "registry"], ["node"], "nixery-snap"]
    assert outputs["shell"] == outputs["devShells"]["x86_64-linux"]


@pytest.mark.parametrize("name", sorted(VM_TESTS))
def test_tests_in_machines_can_be_evaluated(outputs: dict[str, Any], name: str, tmp_path: Path) -> None:
    test = outputs["vms"][name]
    assert test["failures"] == []
    machines = test["services"]
    assert any(re.match("nixery-snap", service) for services in machines.values() for service in services)
    script = ast.parse(test["testScript"])  # it is Python, and speaks of these machines
    spoken_of = {
        node.value.id
        for node in ast.walk(script)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert set(machines) - {"registry"} <= spoken_of
    for files in test["files"].values():
        for settings in [text for file, text in files.items() if re.match(r"nixery-snap_.+\.toml", file)]:
            (tmp_path / "settings.toml").write_text(settings)
            assert load_settings(tmp_path / "settings.toml", {}, {})
