# As much of the nixpkgs flake as flake.nix uses: its outputs can be evaluated where there is no network.
# Functions that make a derivation return a set that shows what they were called with.
let
  # As on nixpkgs' python3Packages. A new dependency of pyproject.toml goes here once it is known to be there.
  pythonPackageNames = [
    "aiohappyeyeballs"
    "aiohttp"
    "backports-zstd"
    "brotli"
    "cachetools"
    "click"
    "grpcio"
    "grpcio-tools"
    "hatchling"
    "inotify-simple"
    "rapidfuzz"
    "obstore"
    "protobuf"
    "pydantic"
    "pynacl"
    "rich"
    "structlog"
    "uvloop"
    "zlib-ng"
  ];

  names = list: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) list);
  package = name: { type = "derivation"; inherit name; outPath = "/nix/store/00000000000000000000000000000000-${name}"; };
  derivationLike = name: arguments: package name // arguments // { inherit arguments; };

  lib = {
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    makeBinPath = packages: builtins.concatStringsSep ":" (map (p: "${p}/bin") packages);
    fileset = {
      unions = map (path: if builtins.pathExists path then path else throw "${toString path} does not exist");
      toSource = { root, fileset }: { inherit root fileset; };
    };
    licenses.asl20.spdxId = "Apache-2.0";
    platforms.linux = [ "x86_64-linux" "aarch64-linux" ];
  };

  packagesFor = system:
    let
      pkgs = names [ "jq" "nix" "nixfmt-tree" "python3" "runc" "shellcheck" "skopeo" "umoci" ] package // {
        inherit lib system;
        callPackage = file: overrides:
          let f = import file; in f (builtins.intersectAttrs (builtins.functionArgs f) pkgs // overrides);
        mkShell = derivationLike "shell";
        python3Packages = names pythonPackageNames package // {
          buildPythonApplication = arguments: derivationLike arguments.pname arguments;
        };
      };
    in
    pkgs;
in
{
  inherit lib;
  legacyPackages = names [ "x86_64-linux" "aarch64-linux" ] packagesFor;
}
