{
  description = "A registry that makes container images from Nix packages by name";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      eachSystem =
        f:
        builtins.listToAttrs (
          map (system: {
            name = system;
            value = f nixpkgs.legacyPackages.${system} self.packages.${system}.default;
          }) systems
        );
    in
    {
      packages = eachSystem (
        pkgs: _: rec {
          nixery-snap = pkgs.callPackage ./nix/package.nix { };
          default = nixery-snap;
        }
      );

      apps = eachSystem (
        _: package: {
          default = {
            type = "app";
            program = "${package}/bin/nixery-snap";
            inherit (package) meta;
          };
        }
      );

      # The Makefile does the rest: its .venv holds the versions that requirements/ locks.
      devShells = eachSystem (
        pkgs: _: {
          default = pkgs.mkShell {
            packages = [
              pkgs.jq
              pkgs.nix
              pkgs.python3
              pkgs.runc
              pkgs.shellcheck
              pkgs.skopeo
              pkgs.umoci
            ];
          };
        }
      );

      # The build imports the package; the tests need real runtimes, root and a store of their own: `make test`.
      checks = eachSystem (_: package: { inherit package; });

      formatter = eachSystem (pkgs: _: pkgs.nixfmt-tree);
    };
}
