# As much of the nixpkgs flake as our Nix files use: they can be evaluated where there is no network.
# Functions that make a derivation return a set that shows what they were called with.
let
  # As on nixpkgs' python3Packages. A new dependency of pyproject.toml goes here once it is known to be there.
  pythonPackageNames = [
    "aiohappyeyeballs"
    "aiohttp"
    "backports-zstd"
    "bcrypt"
    "brotli"
    "cachetools"
    "click"
    "cryptography"
    "grpcio"
    "grpcio-tools"
    "hatchling"
    "hypothesis"
    "inotify-simple"
    "rapidfuzz"
    "obstore"
    "opentelemetry-api"
    "opentelemetry-exporter-otlp-proto-http"
    "opentelemetry-sdk"
    "packaging"
    "prometheus-client"
    "protobuf"
    "pydantic"
    "pyjwt"
    "pynacl"
    "pytest-asyncio"
    "pytest-timeout"
    "pytestCheckHook"
    "rich"
    "structlog"
    "uvloop"
    "zlib-ng"
  ];
  packageNames = [
    "bash"
    "bashInteractive"
    "busybox"
    "cacert"
    "cni-plugin-flannel"
    "cni-plugins"
    "containerd"
    "coreutils"
    "curl"
    "docker"
    "git"
    "git-lfs"
    "gitMinimal"
    "gnused"
    "hello"
    "iana-etc"
    "installShellFiles"
    "jq"
    "moreutils"
    "nano"
    "k3s"
    "kubectl"
    "nginx"
    "nix"
    "nix-snapshotter"
    "nixfmt-tree"
    "openssh"
    "openssl"
    "python3"
    "runc"
    "shellcheck"
    "skopeo"
    "systemd"
    "umoci"
    "util-linux"
    "zstd"
  ];

  basic = import ./lib.nix;
  lib = basic // import ./modules.nix lib // {
    mkPackageOption = pkgs: name: more: lib.mkOption {
      type = lib.types.package;
      default = pkgs.${name};
      description = "The ${name} package to use.";
    } // more;
    # What nixosSystem and home-manager are to their flakes.
    evaluate = kind: system: modules: lib.evalModules {
      modules = [ (import ./nixos.nix { inherit lib; pkgs = packagesFor system; }).${kind} ] ++ modules;
      specialArgs.pkgs = packagesFor system;
    };
  };

  names = list: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) list);
  package = name: {
    type = "derivation";
    inherit name;
    pname = name;
    version = { containerd = "2.1.4"; k3s = "1.35.0"; }.${name} or "1";
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
  };
  derivationLike = name: arguments: package name // arguments // { inherit arguments; };
  toToml = import ./toml.nix lib;

  packagesFor = system:
    let
      pkgs = names packageNames package // {
        inherit lib system toToml;
        path = "/nix/store/00000000000000000000000000000000-source";
        k3s = package "k3s" // { airgap-images = package "k3s-airgap-images"; };
        stdenv = package "stdenv" // {
          isLinux = lib.elem system lib.platforms.linux;
          hostPlatform = { inherit system; isLinux = lib.elem system lib.platforms.linux; go.GOARCH = if system == "aarch64-linux" then "arm64" else "amd64"; };
          buildPlatform.canExecute = other: other.system == system;
        };
        callPackage = file: overrides:
          let f = if builtins.isFunction file then file else import file; in
          f (builtins.intersectAttrs (builtins.functionArgs f) pkgs // overrides);
        mkShell = derivationLike "shell";
        python3Packages = names pythonPackageNames package // {
          pythonOlder = version: builtins.compareVersions "3.13" version < 0;
          buildPythonApplication = arguments: derivationLike arguments.pname arguments;
        };
        formats.toml = _: {
          type =
            let
              value = lib.types.oneOf [ lib.types.bool lib.types.int lib.types.float lib.types.str lib.types.path
                (lib.types.attrsOf value) (lib.types.listOf value) ] // { description = "TOML value"; };
            in
            lib.types.attrsOf value;
          generate = name: value: pkgs.writeText name (toToml value);
        };
        writeText = name: text: package name // { inherit text; };
        writeTextDir = path: text: package (baseNameOf path) // { inherit path text; };
        buildEnv = arguments: derivationLike arguments.name arguments;
        symlinkJoin = arguments: derivationLike arguments.name arguments;
        writeShellScript = name: text: package name // { inherit text; };
        runCommand = name: environment: script: package name // { inherit environment script; };
        testers.runNixOSTest = test:
          let
            evaluated = if builtins.isFunction test then test { inherit pkgs lib; } else test;
            nodes = builtins.mapAttrs
              (name: module: (lib.evaluate "nixos" system [ { networking.hostName = name; } module ]).config)
              evaluated.nodes;
          in
          derivationLike evaluated.name (evaluated // { inherit nodes; });
      };
    in
    pkgs;
  systems = lib.platforms.linux ++ lib.platforms.darwin;
in
{
  inherit lib;
  legacyPackages = names systems packagesFor;
}
