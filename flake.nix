{
  description = "A registry that makes container images from Nix packages by name";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    nix-snapshotter = {
      url = "github:pdtpartners/nix-snapshotter";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      nix-snapshotter,
    }:
    let
      inherit (nixpkgs) lib;
      linux = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      darwin = [
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      eachOf = systems: f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      packageOf = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system}.default;
      modules = import ./nixos-modules;
      # The modules take their packages from here, whatever the machine's nixpkgs has. The key makes one of several
      # imports.
      withPackages = name: module: packages: {
        key = "nixery-snap#${name}";
        imports = [
          module
          (
            { lib, pkgs, ... }:
            lib.mapAttrsRecursiveCond (value: !lib.isDerivation value) (_: lib.mkDefault) (packages pkgs)
          )
        ];
      };
    in
    {
      packages = eachOf (linux ++ darwin) (pkgs: rec {
        nixery-snap = pkgs.callPackage ./nix/package.nix { };
        default = nixery-snap;
      });

      apps = eachOf (linux ++ darwin) (pkgs: {
        default = {
          type = "app";
          program = lib.getExe (packageOf pkgs);
          inherit (packageOf pkgs) meta;
        };
      });

      overlays.default = import ./nix/overlay.nix;

      nixosModules = rec {
        registry = withPackages "registry" modules.nixosModules.registry (pkgs: {
          services.nixery-snap.package = packageOf pkgs;
        });
        binary-cache.imports = [
          registry
          modules.nixosModules.binary-cache
        ];
        node = withPackages "node" modules.nixosModules.node (pkgs: {
          services.nixery-snap-node = {
            package = packageOf pkgs;
            snapshotter.package = nix-snapshotter.packages.${pkgs.stdenv.hostPlatform.system}.default;
          };
        });
        default = registry;
      };

      homeModules = rec {
        node = withPackages "home" modules.homeModules.node (pkgs: {
          services.nixery-snap-node = {
            package = packageOf pkgs;
            snapshotterPackage = nix-snapshotter.packages.${pkgs.stdenv.hostPlatform.system}.default;
          };
        });
        default = node;
      };

      devShells = eachOf (linux ++ darwin) (pkgs: {
        default = pkgs.callPackage ./nix/shell.nix { };
      });

      # The package runs its unit tests; the others need real runtimes, root and a store of their own: `make test`.
      checks =
        eachOf darwin (pkgs: { package = packageOf pkgs; })
        // eachOf linux (
          pkgs:
          { package = packageOf pkgs; }
          // import ./nixos-modules/tests {
            inherit pkgs;
            inherit (self) nixosModules;
            package = packageOf pkgs;
          }
        );

      formatter = eachOf (linux ++ darwin) (pkgs: pkgs.nixfmt-tree);
    };
}
