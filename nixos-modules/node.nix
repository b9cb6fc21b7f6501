# A node that runs snapshotter images: `services.nixery-snap-node`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkForce mkIf mkMerge;
  cfg = config.services.nixery-snap-node;

  # Everything that follows from the one option `registry`.
  registry =
    let
      parts = builtins.match "(https?://)?([^/#]+)(#(.+))?" cfg.registry;
      scheme = if builtins.head parts == null then "https://" else builtins.head parts;
      host = builtins.elemAt parts 1;
    in
    {
      inherit host;
      url = "${scheme}${host}";
      key = builtins.elemAt parts 3;
      hasTls = scheme == "https://";
    };
  asksForKey = cfg.registry != null && registry.key == null;
  learned = "/run/nixery-snap-node/nix.conf";

  imageAddress = cfg.imageService.settings.image_service.listen;
  containerdSocket = "/run/containerd/containerd.sock";
  snapshotterSocket = "/run/nix-snapshotter/nix-snapshotter.sock";
  networkPlugins = pkgs.buildEnv {
    name = "nixery-snap-network-plugins";
    paths = [
      pkgs.cni-plugins
      pkgs.cni-plugin-flannel
    ];
  };

  # Below /etc, where people look for them.
  snapshotterConfig = "nix-snapshotter/config.toml";
  settingsPath = "nixery-snap/image-service.toml";
  program = lib.getExe cfg.package;
in
{
  imports = [
    ./node-options.nix
    (import ./renamed.nix).node
  ];

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        {
          assertion = config.nix.enable;
          message = "services.nixery-snap-node: store paths are fetched by Nix: set nix.enable = true.";
        }
        {
          assertion = cfg.snapshotter.package != null;
          message = "services.nixery-snap-node: nixpkgs has no nix-snapshotter here: set snapshotter.package to that of nix-snapshotter's flake.";
        }
        {
          assertion = !asksForKey || registry.hasTls;
          message = "services.nixery-snap-node: nobody vouches for a key that comes without TLS: append \"#KEY\" to registry, as `nixery-snap node-config` prints it on the registry.";
        }
        {
          assertion = cfg.registry != null || cfg.imageService.enable;
          message = "services.nixery-snap-node: without a registry and without the image service there are no images: set one of registry and imageService.enable.";
        }
        {
          assertion = cfg.orchestrator != "kubelet" || config.services.kubernetes.kubelet.enable;
          message = "services.nixery-snap-node: orchestrator = \"kubelet\" configures services.kubernetes.kubelet, which is not enabled: enable it, or set orchestrator to \"none\" and give your kubelet --image-service-endpoint=${imageAddress}.";
        }
        {
          assertion = cfg.orchestrator != "kubelet" || cfg.containerd.configVersion == 2;
          message = "services.nixery-snap-node: NixOS writes containerd's settings for the kubelet in form 2: leave containerd.configVersion at 2, which containerd 2.x takes as well.";
        }
        {
          assertion = cfg.orchestrator != "k3s" || config.services.k3s.enable;
          message = "services.nixery-snap-node: orchestrator = \"k3s\" configures services.k3s, which is not enabled: enable it.";
        }
      ];

      virtualisation.containerd = {
        enable = true;
        settings =
          let
            settings = import ./containerd.nix {
              version = cfg.containerd.configVersion;
              address = cfg.snapshotter.settings.address;
              platform = "linux/${pkgs.stdenv.hostPlatform.go.GOARCH}";
              # k3s brings network plugins for its own containerd only.
              cni = lib.optionalAttrs (cfg.orchestrator == "k3s") {
                bin_dir = "${networkPlugins}/bin";
                conf_dir = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
              };
            };
          in
          # NixOS says version 2 itself.
          settings // { version = mkForce settings.version; };
      };

      services.nixery-snap-node.snapshotter.settings = {
        address = mkDefault snapshotterSocket;
        root = mkDefault "/var/lib/nix-snapshotter";
        image_service.enable = mkDefault false; # ours stands in for it
        external_builder = mkIf cfg.imageService.enable (mkDefault (lib.getExe' cfg.package "nixery-snap-external-builder"));
      };

      environment.etc.${snapshotterConfig}.source =
        (pkgs.formats.toml { }).generate "nix-snapshotter.toml"
          cfg.snapshotter.settings;

      systemd.services.nix-snapshotter = {
        description = "Snapshots of container images whose layers are store paths";
        wantedBy = [ "multi-user.target" ];
        after = [ "nix-daemon.socket" ];
        before = [ "containerd.service" ];
        restartTriggers = [ config.environment.etc.${snapshotterConfig}.source ];
        path = [ config.nix.package ];
        # For the external builder.
        environment = mkIf cfg.imageService.enable { NIXERY_SNAP_IMAGE_SERVICE__LISTEN = imageAddress; };
        serviceConfig = {
          Type = "notify";
          ExecStart = "${lib.getExe' cfg.snapshotter.package "nix-snapshotter"} --config /etc/${snapshotterConfig}";
          Delegate = "yes";
          KillMode = "mixed";
          Restart = "always";
          RestartSec = 2;
          StateDirectory = "nix-snapshotter";
          RuntimeDirectory = "nix-snapshotter";
          RuntimeDirectoryPreserve = "yes";
        };
      };
    }

    (mkIf cfg.imageService.enable {
      services.nixery-snap-node.imageService.settings = {
        storage = mkDefault "file:///var/lib/nixery-snap-node";
        cache_directory = mkDefault "/var/cache/nixery-snap-node";
        substituters = mkIf (cfg.registry != null && registry.key != null) (mkDefault [
          {
            url = "${registry.url}/nix-cache";
            public_keys = [ registry.key ];
          }
          {
            url = "https://cache.nixos.org";
            public_keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
          }
        ]);
        # Nobody fetches from a node.
        binary_cache.enabled = mkDefault false;
        image_service = {
          listen = mkDefault "unix:///run/nixery-snap/image.sock";
          containerd = mkDefault "unix://${containerdSocket}";
          snapshotter = mkDefault "nix";
          registries = mkIf (cfg.registry != null) [ registry.host ];
        }
        // lib.optionalAttrs (cfg.imageService.group != "root") { inherit (cfg.imageService) group; };
      };

      environment.etc.${settingsPath}.source = cfg.imageService.settingsFile;

      systemd.services.nixery-snap-image-service = {
        description = "Image service of the kubelet for images made of store paths";
        wantedBy = [ "multi-user.target" ];
        before = [
          "kubelet.service"
          "k3s.service"
        ];
        # It starts before containerd and outlives its restarts.
        after = [
          "nix-daemon.socket"
          "nix-snapshotter.service"
        ];
        restartTriggers = [ cfg.imageService.settingsFile ];
        path = [
          config.nix.package
          pkgs.gitMinimal
          pkgs.openssh
        ];
        serviceConfig = import ./hardening.nix { inherit lib; } // {
          Type = "notify";
          WatchdogSec = 60;
          ExecStart = "${program} image-service --config /etc/${settingsPath}";
          Restart = "always";
          RestartSec = 2;
          KillMode = "mixed";
          OOMPolicy = "continue";
          LimitNOFILE = 65536;
          # Root, for containerd's socket, but without any of root's capabilities.
          User = "root";
          Group = cfg.imageService.group;
          StateDirectory = "nixery-snap-node";
          StateDirectoryMode = "0700";
          CacheDirectory = "nixery-snap-node";
          CacheDirectoryMode = "0700";
          RuntimeDirectory = "nixery-snap";
          RuntimeDirectoryMode = "0755";
          # Links that keep the store paths of images from the garbage collector, its own and nix-snapshotter's.
          ReadWritePaths = [
            "/nix/var/nix"
            "-${cfg.snapshotter.settings.root}"
          ];
        };
      };
    })

    (mkIf (cfg.registry != null) {
      nix.settings = {
        substituters = [ "${registry.url}/nix-cache" ];
        trusted-public-keys = lib.optional (registry.key != null) registry.key;
      };
      environment.etc."containerd/certs.d/${registry.host}/hosts.toml".source = import ./hosts-toml.nix {
        inherit pkgs;
        inherit (registry) url;
      };
    })

    (mkIf asksForKey {
      nix.extraOptions = "!include ${learned}";
      systemd.services.nixery-snap-node-key = {
        description = "Public key of the registry's binary cache";
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        after = [ "network-online.target" ];
        path = [
          pkgs.curl
          pkgs.gnused
          config.systemd.package
        ];
        # Of what the registry says nothing but one well-formed key gets into nix.conf.
        script = ''
          key=$(curl --fail --silent --show-error --proto =https --max-filesize 65536 ${lib.escapeShellArg registry.url}/ |
            sed -En 's/^ *extra-trusted-public-keys = ([A-Za-z0-9._-]+:[A-Za-z0-9+/]{43}=)$/\1/p')
          test -n "$key" -a "$(wc -l <<< "$key")" = 1
          echo "extra-trusted-public-keys = $key" > ${learned}
          systemctl try-restart nix-daemon.service
        '';
        # Root, for nix.conf and for systemd's socket, but without any of root's capabilities.
        serviceConfig = import ./hardening.nix { inherit lib; } // {
          Type = "oneshot";
          RemainAfterExit = true;
          Restart = "on-failure";
          RestartSec = 10;
          RuntimeDirectory = "nixery-snap-node";
          RuntimeDirectoryPreserve = "yes";
          UMask = "0022"; # every client of Nix reads it
        };
      };
    })

    (mkIf (cfg.orchestrator == "kubelet") {
      services.kubernetes.kubelet = {
        containerRuntimeEndpoint = "unix://${containerdSocket}";
        extraOpts = mkIf cfg.imageService.enable "--image-service-endpoint=${imageAddress}";
      };
    })

    (mkIf (cfg.orchestrator == "k3s") {
      services.k3s.extraFlags = [
        "--container-runtime-endpoint=unix://${containerdSocket}"
      ]
      ++ lib.optional cfg.imageService.enable "--image-service-endpoint=${imageAddress}";
      systemd.services.k3s.after = [
        "containerd.service"
        "nixery-snap-image-service.service"
      ];
      systemd.services.k3s.wants = [ "containerd.service" ];
    })
  ]);
}
