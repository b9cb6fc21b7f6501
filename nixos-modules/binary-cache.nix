# A binary cache without images: `services.nixery-snap-cache`. It serves what `nixery-snap push` put into it, and
# reads through to others. The service is that of registry.nix, with a package set that is empty.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkDefault
    mkEnableOption
    mkIf
    mkOption
    types
    ;
  cfg = config.services.nixery-snap-cache;
in
{
  imports = [ ./registry.nix ];

  options.services.nixery-snap-cache = {
    enable = mkEnableOption "nixery-snap as a binary cache alone; `services.nixery-snap` has all further options";

    upstreams = mkOption {
      default = [ ];
      example = [
        {
          url = "https://cache.nixos.org";
          publicKeys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
        }
      ];
      description = "Binary caches that are read through: what the own one lacks is fetched, checked, kept and served.";
      type = types.listOf (
        types.submodule {
          options = {
            url = mkOption {
              type = types.str;
              example = "https://cache.nixos.org";
              description = "Its URL.";
            };
            publicKeys = mkOption {
              type = types.listOf types.str;
              default = [ ];
              example = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
              description = "Whose signatures make its paths trusted.";
            };
          };
        }
      );
    };

    priority = mkOption {
      type = types.ints.unsigned;
      default = 30;
      example = 50;
      description = "Told to clients, who ask caches with lower ones first; cache.nixos.org has 40.";
    };
  };

  config = mkIf cfg.enable {
    assertions = map (upstream: {
      assertion = upstream.publicKeys != [ ];
      message = "services.nixery-snap-cache: nothing of the upstream ${upstream.url} could be trusted: give its publicKeys.";
    }) cfg.upstreams;

    services.nixery-snap = {
      enable = true;
      # Reading through needs no Nix, and the machine's daemon no more caches than before.
      trustSubstituters = mkDefault false;
      settings = {
        source = mkDefault "path:${./empty-package-set}";
        base_packages = mkDefault [ ];
        substituters = map (upstream: {
          inherit (upstream) url;
          public_keys = upstream.publicKeys;
        }) cfg.upstreams;
        binary_cache = {
          upstreams = map (upstream: upstream.url) cfg.upstreams;
          inherit (cfg) priority;
        };
      };
    };

    # The registry's half stays inside.
    services.nginx.virtualHosts = mkIf config.services.nixery-snap.nginx.enable {
      ${config.services.nixery-snap.nginx.hostName}.locations."/v2/".return = "404";
    };
  };
}
