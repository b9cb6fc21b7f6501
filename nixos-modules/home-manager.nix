# A rootless node for one user, by home-manager: `services.nixery-snap-node`. It adds nix-snapshotter and the image
# service to a rootless containerd that is there already, as nerdctl's containerd-rootless-setuptool.sh or
# nix-snapshotter's own home module set it up; its mounts live in containerd's namespaces, which they join.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    literalExpression
    mkDefault
    mkEnableOption
    mkIf
    mkOption
    types
    ;
  cfg = config.services.nixery-snap-node;
  format = pkgs.formats.toml { };
  common = import ./common-options.nix { inherit lib pkgs; };

  parts = builtins.match "(https?://)?([^/#]+)#(.+)" cfg.registry;
  host = builtins.elemAt parts 1;
  url = "${if builtins.head parts == null then "https://" else builtins.head parts}${host}";

  program = lib.getExe cfg.package;
  runtimeDirectory = "/run/user/${toString cfg.uid}"; # configuration files know no variables
  snapshotterConfig = format.generate "nix-snapshotter.toml" {
    address = "${runtimeDirectory}/nix-snapshotter/nix-snapshotter.sock";
    root = "${config.xdg.dataHome}/nix-snapshotter";
    image_service.enable = false;
    external_builder = lib.getExe' cfg.package "nixery-snap-external-builder";
  };
  settingsFile = import ./settings-file.nix {
    inherit pkgs;
    inherit (cfg) package settings;
    check = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
  };
  joined = pkgs.writeShellScript "nixery-snap-joined" ''
    pid=$(cat "$XDG_RUNTIME_DIR/containerd-rootless/child_pid")
    exec ${lib.getExe' pkgs.util-linux "nsenter"} --target "$pid" --user --mount --preserve-credentials "$@"
  '';
  service = description: command: {
    Unit = {
      Description = description;
      After = [ cfg.containerdUnit ];
      BindsTo = [ cfg.containerdUnit ];
      X-Restart-Triggers = map toString [
        snapshotterConfig
        settingsFile
      ];
    };
    Install.WantedBy = [ "default.target" ];
    Service = {
      Type = "notify";
      NotifyAccess = "all";
      Environment = [
        "PATH=${
          lib.makeBinPath [
            cfg.nixPackage
            pkgs.gitMinimal
            pkgs.openssh
          ]
        }"
        # For the external builder.
        "NIXERY_SNAP_IMAGE_SERVICE__LISTEN=${cfg.settings.image_service.listen}"
      ];
      ExecStart = command;
      Restart = "always";
      RestartSec = 2;
    };
  };
in
{
  options.services.nixery-snap-node = {
    enable = mkEnableOption "what a rootless containerd needs to run snapshotter images";

    package = common.package "The package with the image service.";

    registry = mkOption {
      type = types.strMatching "(https?://)?[^/#]+#[^#: ]+:[A-Za-z0-9+/]+=*";
      example = "registry.example#registry-1:dPTPs93V5Eai8xC4JnVkYD8tpVQAQ5jzZqKhPeXHbaE=";
      description = ''
        The registry whose images are run: its address and, behind a `#`, the public key of its binary cache. Nix must
        accept both from this user: he is one of its trusted users, or the system names them too.
      '';
    };

    uid = mkOption {
      type = types.ints.positive;
      example = 1000;
      description = "The user's number, for paths below /run/user in files that know no variables.";
    };

    containerdUnit = mkOption {
      type = types.str;
      default = "containerd.service";
      example = "nerdctl-containerd.service";
      description = "The user unit of the rootless containerd.";
    };

    containerdConfigVersion = common.containerdVersion {
      description = "The form of containerd's configuration: 2 for containerd 1.7, 3 for 2.x.";
    };

    nixPackage = mkOption {
      type = types.package;
      default = pkgs.nix;
      defaultText = literalExpression "pkgs.nix";
      example = literalExpression "config.nix.package";
      description = "Nix, as it fits this machine's daemon.";
    };

    inherit (common) snapshotterPackage;

    settings = mkOption {
      type = format.type;
      default = { };
      example = {
        source = "channel:nixos-24.05";
      };
      description = "All settings of the image service, as in docs/settings.md, checked while the generation is built.";
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.snapshotterPackage != null;
        message = "services.nixery-snap-node: nixpkgs has no nix-snapshotter here: set snapshotterPackage to that of nix-snapshotter's flake.";
      }
    ];

    home.packages = [ cfg.package ];

    nix.settings = {
      extra-substituters = [ "${url}/nix-cache" ];
      extra-trusted-public-keys = [ (builtins.elemAt parts 2) ];
    };

    xdg.configFile = {
      "nix-snapshotter/config.toml".source = snapshotterConfig;
      "nixery-snap/image-service.toml".source = settingsFile;
      "containerd/config.toml".source = format.generate "containerd.toml" (
        import ./containerd.nix {
          version = cfg.containerdConfigVersion;
          address = "${runtimeDirectory}/nix-snapshotter/nix-snapshotter.sock";
          platform = "linux/${pkgs.stdenv.hostPlatform.go.GOARCH}";
          certsDirectory = "${config.xdg.configHome}/containerd/certs.d";
        }
      );
      "containerd/certs.d/${host}/hosts.toml".source = import ./hosts-toml.nix { inherit pkgs url; };
    };

    services.nixery-snap-node.settings = {
      source = mkDefault "channel:nixos-unstable";
      binary_cache.enabled = mkDefault false;
      image_service = {
        listen = mkDefault "unix://${runtimeDirectory}/nixery-snap/image.sock";
        containerd = mkDefault "unix://${runtimeDirectory}/containerd/containerd.sock";
        snapshotter = mkDefault "nix";
        certs_directory = mkDefault "${config.xdg.configHome}/containerd/certs.d";
        registries = [ host ];
      };
    };

    systemd.user.services = {
      nix-snapshotter = service "Snapshots of container images whose layers are store paths" "${joined} ${lib.getExe' cfg.snapshotterPackage "nix-snapshotter"} --config ${config.xdg.configHome}/nix-snapshotter/config.toml";
      nixery-snap-image-service = service "Image service for images made of store paths" "${joined} ${program} image-service --config ${config.xdg.configHome}/nixery-snap/image-service.toml";
    };
  };
}
