# The options of `services.nixery-snap`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkEnableOption
    mkOption
    types
    ;
  cfg = config.services.nixery-snap;
  format = pkgs.formats.toml { };
  common = import ./common-options.nix { inherit lib pkgs; };
  # No `types.path`: a path literal would be copied to the Nix store, which everybody can read.
  secret = types.nullOr types.str;
in
{
  options.services.nixery-snap = {
    enable = mkEnableOption "nixery-snap, a registry that makes container images of Nix packages by name";

    package = common.package "The package to run.";

    settings = mkOption {
      default = { };
      example = {
        listen = "0.0.0.0:8080";
        source = "git+https://git.example/pkgs.git";
        meta_packages.debug = [
          "strace"
          "gdb"
        ];
      };
      description = ''
        All settings, as in docs/settings.md. They are written as TOML and checked while the system is built. What is
        set here can be read by every user of the machine: secrets have options of their own.
      '';
      type = types.submodule {
        freeformType = format.type;
        options = {
          listen = mkOption {
            type = types.strMatching ".+:[0-9]+";
            default = "127.0.0.1:8080";
            example = "[::]:5000";
            description = "HOST:PORT to serve at.";
          };
          format = mkOption {
            type = types.enum [
              "classic"
              "nix-snapshotter"
            ];
            default = "classic";
            example = "nix-snapshotter";
            description = "The format of images whose name says none.";
          };
          source = mkOption {
            type = types.str;
            default = "channel:nixos-unstable";
            example = "git+https://github.com/NixOS/nixpkgs?ref=nixos-24.05";
            description = "The default package set: `path:`, `git+…`, `channel:`, `tarball:` or `flake:`.";
          };
          storage = mkOption {
            type = types.str;
            default = "file:///var/lib/nixery-snap";
            example = "file:///srv/images";
            description = "The object store. A directory elsewhere is made, and opened to the service.";
          };
          cache_directory = mkOption {
            type = types.strMatching "/.+";
            default = "/var/cache/nixery-snap";
            example = "/srv/cache";
            description = "For what can be made again, and for links that keep store paths from the garbage collector.";
          };
        };
      };
    };

    inherit (common) checkSettings;

    settingsFile = common.settingsFile {
      path = "services.nixery-snap";
      of = cfg;
      inherit (cfg) package;
      madeOf = "settings";
      where = ", which is also at /etc/nixery-snap/settings.toml";
    };

    user = mkOption {
      type = types.str;
      default = "nixery-snap";
      example = "registry";
      description = "The user of the service; the default one is made.";
    };

    group = mkOption {
      type = types.str;
      default = "nixery-snap";
      example = "registry";
      description = "The group of the service; the default one is made.";
    };

    signingKeyFile = mkOption {
      type = secret;
      default = null;
      example = "/run/secrets/nixery-snap-signing-key";
      description = ''
        The secret key that signs the binary cache, as `nix key generate-secret` makes it; only root has to be able to
        read it. Without one the registry makes a key at its first start, below its storage directory. Replicas need
        the same key.
      '';
    };

    sourceSecrets = mkOption {
      default = { };
      example = {
        internal.tokenFile = "/run/secrets/git-token";
      };
      description = "Files with the secrets of sources, by the source's name; `default` is the one of `settings.source`.";
      type = types.attrsOf (
        types.submodule {
          options = {
            tokenFile = mkOption {
              type = secret;
              default = null;
              example = "/run/secrets/git-token";
              description = "An access token for git over HTTPS.";
            };
            netrcFile = mkOption {
              type = secret;
              default = null;
              example = "/run/secrets/netrc";
              description = "Passwords by host, for HTTPS.";
            };
            sshKeyFile = mkOption {
              type = secret;
              default = null;
              example = "/run/secrets/deploy-key";
              description = "A key for git over SSH.";
            };
          };
        }
      );
    };

    credentials = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        tls-key = "/run/secrets/tls-key";
      };
      description = ''
        More files that only the service may read (LoadCredential= of systemd), by the name under which they are in
        /run/credentials/nixery-snap.service/, for settings that name a file.
      '';
    };

    environmentFiles = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "/run/secrets/bucket-keys" ];
      description = "Files with environment variables, for the keys of buckets (AWS_ACCESS_KEY_ID …).";
    };

    socketActivation = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Whether systemd holds the listening socket, so that connections wait, and none is refused, while the service
        restarts.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to open the port of `settings.listen`, or with nginx 80 and 443.";
    };

    metrics.openFirewall = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to open the port of `settings.metrics.listen`, to Prometheus on another machine.";
    };

    trustSubstituters = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Whether this machine's Nix daemon is told to accept `settings.substituters` and to trust their keys. The
        service is no trusted user, so without it the daemon ignores those that it does not know.
      '';
    };

    nginx = {
      enable = mkEnableOption "nginx in front of the registry, with TLS";

      hostName = mkOption {
        type = types.str;
        default = "";
        example = "registry.example";
        description = ''
          What clients call the registry. More of its nginx goes into `services.nginx.virtualHosts.<hostName>`, such
          as certificates of your own.
        '';
      };

      acme = mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Whether the certificate comes by ACME; needs `security.acme.acceptTerms` and an address.";
      };
    };
  };
}
