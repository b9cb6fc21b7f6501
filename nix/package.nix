{ lib, nix, python3Packages }:
let
  inherit (lib.importTOML ../pyproject.toml) project;
  # "aiohttp>=3.14" -> python3Packages.aiohttp
  pythonPackage =
    requirement: python3Packages.${builtins.head (builtins.match "([A-Za-z0-9._-]+).*" requirement)};
in
python3Packages.buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../LICENSE
      ../hatch_build.py
      ../nixery_snap
      ../protos
      ../pyproject.toml
    ];
  };

  build-system = [
    python3Packages.grpcio-tools
    python3Packages.hatchling
  ];
  dependencies = map pythonPackage project.dependencies;
  # The lower bounds are the versions that the lock files test; a nixpkgs release may lag behind.
  pythonRelaxDeps = true;

  # Last on PATH: the machine's own Nix, which fits its store and daemon, comes first.
  makeWrapperArgs = [ "--suffix PATH : ${lib.makeBinPath [ nix ]}" ];

  pythonImportsCheck = [ "nixery_snap.cli" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "nixery-snap";
    platforms = lib.platforms.linux;
  };
}
