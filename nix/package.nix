{
  installShellFiles,
  lib,
  nix,
  openssl,
  python3Packages,
  stdenv,
}:
let
  inherit (lib.importTOML ../pyproject.toml) project;
  # "aiohttp>=3.14" -> python3Packages.aiohttp
  pythonPackage =
    requirement: python3Packages.${builtins.head (builtins.match "([A-Za-z0-9._-]+).*" requirement)};
  # Those two markers are all that pyproject.toml has.
  isNeeded =
    requirement:
    (stdenv.isLinux || !lib.hasInfix "sys_platform == 'linux'" requirement)
    && (python3Packages.pythonOlder "3.14" || !lib.hasInfix "python_version < '3.14'" requirement);
in
python3Packages.buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../LICENSE
      ../bin
      ../examples
      ../hatch_build.py
      ../nixery_snap
      ../protos
      ../pyproject.toml
      ../tests
    ];
  };

  build-system = [
    python3Packages.grpcio-tools
    python3Packages.hatchling
  ];
  dependencies = map pythonPackage (lib.filter isNeeded project.dependencies);
  optional-dependencies = lib.mapAttrs (_: map pythonPackage) project.optional-dependencies;
  # The lower bounds are the versions that the lock files test; a nixpkgs release may lag behind.
  pythonRelaxDeps = true;

  # Last on PATH: the machine's own Nix, which fits its store and daemon, comes first.
  makeWrapperArgs = [ "--suffix PATH : ${lib.makeBinPath [ nix ]}" ];

  nativeBuildInputs = [ installShellFiles ];
  # By the program itself, which cannot run where it is built for another platform.
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    for shell in bash fish zsh; do
      installShellCompletion --cmd nixery-snap --$shell <("$out/bin/nixery-snap" completion $shell)
    done
  '';

  pythonImportsCheck = [ "nixery_snap.cli" ];

  # Those that need neither a store nor daemons of their own, nor the rest of the repository; `make test` runs all.
  nativeCheckInputs = [
    openssl
    python3Packages.hypothesis
    python3Packages.packaging
    python3Packages.pytest-asyncio
    python3Packages.pytest-timeout
    python3Packages.pytestCheckHook
  ];
  enabledTestPaths = [ "tests/unit" ];
  disabledTestPaths = [
    "tests/unit/evaluation/test_question.py"
    "tests/unit/test_deploy.py"
    "tests/unit/test_flake.py"
    "tests/unit/test_manual.py"
    "tests/unit/test_monitoring.py"
    "tests/unit/test_nixos_modules.py"
    "tests/unit/test_nixos_units.py"
    "tests/unit/test_repo.py"
  ];
  # Other versions than those of the lock files may warn of other things.
  pytestFlags = [ "-Wdefault" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "nixery-snap";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
  };
}
