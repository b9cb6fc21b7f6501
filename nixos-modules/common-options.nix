# Options that several modules have, each under a name of its own.
{ lib, pkgs }:
let
  inherit (lib)
    literalExpression
    literalMD
    mkOption
    types
    ;
  canRun = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
in
{
  package =
    what:
    mkOption {
      type = types.package;
      default = pkgs.nixery-snap or (pkgs.callPackage ../nix/package.nix { });
      defaultText = literalExpression "pkgs.nixery-snap, or built from these files";
      example = literalExpression "inputs.nixery-snap.packages.\${pkgs.system}.default";
      description = what;
    };

  snapshotterPackage = mkOption {
    type = types.nullOr types.package;
    default = pkgs.nix-snapshotter or null;
    defaultText = literalExpression "pkgs.nix-snapshotter or null";
    example = literalExpression "inputs.nix-snapshotter.packages.\${pkgs.system}.default";
    description = "nix-snapshotter; its own flake has it where nixpkgs does not.";
  };

  checkSettings = mkOption {
    type = types.bool;
    default = canRun;
    defaultText = literalExpression "pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform";
    example = false;
    description = "Whether `nixery-snap check-config` is run on the settings while the system is built.";
  };

  # `of`: the options with `settings` and `checkSettings`, which lie at `path`.
  settingsFile =
    {
      path,
      of,
      package,
      madeOf,
      where ? "",
    }:
    mkOption {
      type = types.path;
      readOnly = true;
      default = import ./settings-file.nix {
        inherit pkgs package;
        inherit (of) settings;
        check = of.checkSettings;
      };
      defaultText = literalMD "made of ${madeOf}";
      example = literalExpression "config.${path}.settingsFile";
      description = "The settings as TOML${where}. Read-only.";
    };

  # `exception`: a condition under which it is 2 whatever the release, and `exceptionText` as it stands in the manual.
  containerdVersion =
    {
      description,
      exception ? false,
      exceptionText ? "",
    }:
    mkOption {
      type = types.enum [
        2
        3
      ];
      default = if !exception && lib.versionAtLeast pkgs.containerd.version "2" then 3 else 2;
      defaultText = literalExpression ''if ${exceptionText}lib.versionAtLeast pkgs.containerd.version "2" then 3 else 2'';
      example = 2;
      inherit description;
    };
}
