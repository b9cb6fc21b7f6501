# The options of `services.nixery-snap-node`.
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
  cfg = config.services.nixery-snap-node;
  format = pkgs.formats.toml { };
  common = import ./common-options.nix { inherit lib pkgs; };
in
{
  options.services.nixery-snap-node = {
    enable = mkEnableOption "what a node needs to run snapshotter images: containerd, nix-snapshotter and nixery-snap's image service";

    package = common.package "The package with the image service.";

    registry = mkOption {
      type = types.nullOr (types.strMatching "(https?://)?[^/#]+(#[^#: ]+:[A-Za-z0-9+/]+=*)?");
      default = null;
      example = "registry.example#registry-1:dPTPs93V5Eai8xC4JnVkYD8tpVQAQ5jzZqKhPeXHbaE=";
      description = ''
        The registry whose images this node runs: its address as in image names and, behind a `#`, the public key of
        its binary cache, which `nixery-snap node-config` and its front page tell. Everything else follows: the
        substituter, the trusted key, containerd's hosts.toml and the image service's registries. Put `http://` in
        front for one without TLS. Without a key it is asked for at each start, over TLS: whoever holds the registry's
        certificate is then trusted with what this node runs. `null` for a node that assembles its images itself
        (`nix:0/shell/hello`).
      '';
    };

    orchestrator = mkOption {
      type = types.enum [
        "none"
        "kubelet"
        "k3s"
      ];
      default = "none";
      example = "k3s";
      description = ''
        Who starts containers: `kubelet` for services.kubernetes, `k3s` for services.k3s; each is told to use this
        node's containerd and image service. `none` for containerd alone (nerdctl, ctr).
      '';
    };

    containerd.configVersion = common.containerdVersion {
      exception = cfg.orchestrator == "kubelet";
      exceptionText = ''orchestrator != "kubelet" && '';
      description = ''
        The form of containerd's configuration: 2 for containerd 1.7, 3 for 2.x, which takes 2 as well. With the kubelet it
        is 2: NixOS writes its own half of it in that form.
      '';
    };

    snapshotter = {
      package = common.snapshotterPackage;
      settings = mkOption {
        type = format.type;
        default = { };
        example = {
          root = "/srv/nix-snapshotter";
        };
        description = "More settings of nix-snapshotter's configuration file.";
      };
    };

    imageService = {
      enable = mkEnableOption "the image service: `nix:0/…` references, and store paths fetched in parallel" // {
        default = true;
        example = false;
      };

      group = mkOption {
        type = types.str;
        default = "root";
        example = "kubelet";
        description = "The group that may use the image service's socket.";
      };

      settings = mkOption {
        default = { };
        example = {
          source = "channel:nixos-24.05";
        };
        description = "All settings of the image service, as in docs/settings.md, checked while the system is built.";
        type = types.submodule {
          freeformType = format.type;
          options = {
            source = mkOption {
              type = types.str;
              default = "channel:nixos-unstable";
              example = "git+https://git.example/pkgs.git";
              description = "The package set of `nix:0/…` names, which are assembled on this node.";
            };
          };
        };
      };

      inherit (common) checkSettings;

      settingsFile = common.settingsFile {
        path = "services.nixery-snap-node.imageService";
        of = cfg.imageService;
        inherit (cfg) package;
        madeOf = "imageService.settings";
      };
    };
  };
}
