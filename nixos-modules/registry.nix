# The registry as a service: `services.nixery-snap`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkIf mkMerge;
  cfg = config.services.nixery-snap;
  inherit (cfg) settings;

  # Settings files cannot say %d; this is where systemd keeps the credentials of a system's service (systemd.exec(5)).
  credential = name: "/run/credentials/nixery-snap.service/${name}";

  # One entry for each secret that is given: the credential, its file, and the setting that names it.
  secrets =
    lib.optional (cfg.signingKeyFile != null) {
      name = "signing-key";
      file = cfg.signingKeyFile;
      option = "signingKeyFile";
      setting = [
        "binary_cache"
        "signing_key_file"
      ];
    }
    ++ lib.concatMap (
      source:
      lib.concatMap
        (
          { option, key }:
          lib.optional (cfg.sourceSecrets.${source}.${option} != null) {
            name = "source-${source}-${key}";
            file = cfg.sourceSecrets.${source}.${option};
            option = "sourceSecrets.${source}.${option}";
            setting = [
              "sources"
              source
              key
            ];
          }
        )
        [
          {
            option = "tokenFile";
            key = "token_file";
          }
          {
            option = "netrcFile";
            key = "netrc_file";
          }
          {
            option = "sshKeyFile";
            key = "ssh_key_file";
          }
        ]
    ) (lib.attrNames cfg.sourceSecrets)
    ++ lib.mapAttrsToList (name: file: {
      inherit name file;
      option = "credentials.${name}";
      setting = [ ];
    }) cfg.credentials;

  portOf = address: lib.toInt (lib.last (lib.splitString ":" address));
  hostOf = address: lib.removeSuffix ":${toString (portOf address)}" address;
  isLoopback = host: lib.hasPrefix "127." host || host == "[::1]" || host == "localhost";
  port = portOf settings.listen;
  host = hostOf settings.listen;
  onLoopback = isLoopback host;
  metricsListen = settings.metrics.listen or "";
  # Where nginx finds a server that listens everywhere.
  upstream =
    {
      "0.0.0.0" = "127.0.0.1";
      "[::]" = "[::1]";
    }
    .${host} or host;

  store = settings.nix.store or "auto";
  privateStore = lib.hasPrefix "/" store;
  storageDirectory = if lib.hasPrefix "file:///" settings.storage then lib.removePrefix "file://" settings.storage else null;
  isBelow = directory: path: path == directory || lib.hasPrefix "${directory}/" path;
  # What systemd does not make by StateDirectory= and CacheDirectory=.
  directories = lib.unique (
    lib.optional (storageDirectory != null && !isBelow "/var/lib/nixery-snap" storageDirectory) storageDirectory
    ++ lib.optional (!isBelow "/var/cache/nixery-snap" settings.cache_directory) settings.cache_directory
    ++ lib.optional (privateStore && !isBelow "/var/lib/nixery-snap" store) store
  );

  program = lib.getExe cfg.package;
  settingsPath = "/etc/nixery-snap/settings.toml";
in
{
  imports = [
    ./registry-options.nix
    (import ./renamed.nix).registry
  ];

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        {
          assertion = config.nix.enable || privateStore;
          message = "services.nixery-snap: there is no Nix daemon to build with: set nix.enable = true, or settings.nix.store to a directory for a store of its own.";
        }
        {
          assertion = !(cfg.signingKeyFile != null && settings ? binary_cache.signing_key_file && settings.binary_cache.signing_key_file != credential "signing-key");
          message = "services.nixery-snap: the signing key is named twice: remove settings.binary_cache.signing_key_file, and keep signingKeyFile.";
        }
        {
          assertion = !cfg.openFirewall || cfg.nginx.enable || !onLoopback;
          message = "services.nixery-snap: openFirewall opens a port at which only this machine is served (${settings.listen}): set settings.listen to \"0.0.0.0:${toString port}\", or nginx.enable.";
        }
        {
          assertion = !cfg.metrics.openFirewall || (metricsListen != "" && !isLoopback (hostOf metricsListen));
          message = "services.nixery-snap: metrics.openFirewall opens a port at which no other machine is served (settings.metrics.listen = \"${metricsListen}\"): set settings.metrics.listen to an address that Prometheus reaches, such as \"0.0.0.0:9090\".";
        }
        {
          assertion = !cfg.nginx.enable || cfg.nginx.hostName != "";
          message = "services.nixery-snap: nginx needs a name: set nginx.hostName to what clients call the registry.";
        }
        {
          assertion = !cfg.socketActivation || builtins.match "[0-9.]+|\\[.*]" host != null;
          message = "services.nixery-snap: systemd listens on addresses only, and settings.listen names the host \"${host}\": give its address, or set socketActivation = false.";
        }
      ]
      ++ map (secret: {
        assertion = lib.hasPrefix "/" secret.file && !lib.hasPrefix builtins.storeDir secret.file;
        message = "services.nixery-snap: ${secret.option} = \"${secret.file}\" is no file outside of the Nix store, which every user can read: give an absolute path as a string, such as one of agenix or sops-nix.";
      }) secrets
      ++ map (source: {
        assertion = source == "default" || settings ? sources.${source}.spec;
        message = "services.nixery-snap: sourceSecrets.${source} belongs to no source: add settings.sources.${source}.spec, or call it \"default\" for that of settings.source.";
      }) (lib.attrNames cfg.sourceSecrets);

      services.nixery-snap.settings = mkMerge (
        map (secret: lib.setAttrByPath secret.setting (mkDefault (credential secret.name))) (
          lib.filter (secret: secret.setting != [ ]) secrets
        )
      );

      environment.etc."nixery-snap/settings.toml".source = cfg.settingsFile;
      environment.systemPackages = [ cfg.package ];

      systemd.sockets.nixery-snap = mkIf cfg.socketActivation {
        description = "nixery-snap's listening socket";
        wantedBy = [ "sockets.target" ];
        listenStreams = [ settings.listen ];
        socketConfig = {
          Backlog = 1024;
          NoDelay = true;
        };
      };

      systemd.services.nixery-snap = {
        description = "Registry of container images made from Nix packages";
        documentation = [ "file://${settingsPath}" ];
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        requires = lib.optional cfg.socketActivation "nixery-snap.socket";
        after = [
          "network-online.target"
          "nix-daemon.socket"
        ]
        ++ lib.optional cfg.socketActivation "nixery-snap.socket";
        # Settings are read again in place; another address needs another socket.
        reloadTriggers = [ cfg.settingsFile ];
        restartTriggers = [ settings.listen ];
        path = [
          config.nix.package
          pkgs.gitMinimal
          pkgs.openssh
        ]
        ++ lib.optional (lib.any (source: source.lfs or false) (lib.attrValues (settings.sources or { }))) pkgs.git-lfs;
        serviceConfig = import ./hardening.nix { inherit lib privateStore; } // {
          Type = "notify";
          ExecStart = "${program} serve --config ${settingsPath}";
          ExecReload = [
            "${program} check-config --config ${settingsPath}"
            "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID"
          ];
          Restart = "always";
          RestartSec = 2;
          # The server ends its own children; running work has limits.shutdown_timeout.
          KillMode = "mixed";
          TimeoutStopSec = builtins.ceil (settings.limits.shutdown_timeout or 60) + 30;
          # An evaluator that takes too much is ended by itself.
          OOMPolicy = "continue";
          LimitNOFILE = 65536;
          User = cfg.user;
          Group = cfg.group;
          StateDirectory = "nixery-snap";
          StateDirectoryMode = "0700";
          CacheDirectory = "nixery-snap";
          CacheDirectoryMode = "0700";
          LoadCredential = map (secret: "${secret.name}:${secret.file}") secrets;
          EnvironmentFile = cfg.environmentFiles;
          ReadWritePaths = directories;
        };
      };

      systemd.tmpfiles.rules = map (directory: "d ${directory} 0700 ${cfg.user} ${cfg.group} -") directories;

      users.users = mkIf (cfg.user == "nixery-snap") {
        nixery-snap = {
          isSystemUser = true;
          inherit (cfg) group;
          home = "/var/lib/nixery-snap";
          description = "nixery-snap registry";
        };
      };
      users.groups = mkIf (cfg.group == "nixery-snap") { nixery-snap = { }; };

      networking.firewall.allowedTCPPorts = mkMerge [
        (mkIf cfg.openFirewall (
          if cfg.nginx.enable then
            [
              80
              443
            ]
          else
            [ port ]
        ))
        (mkIf cfg.metrics.openFirewall [ (portOf metricsListen) ])
      ];
    }

    (mkIf (cfg.trustSubstituters && settings ? substituters) {
      nix.settings = {
        trusted-substituters = map (substituter: substituter.url) settings.substituters;
        trusted-public-keys = lib.concatMap (substituter: substituter.public_keys or [ ]) settings.substituters;
      };
    })

    (mkIf cfg.nginx.enable {
      # The registry itself cannot know by which name it is reached.
      services.nixery-snap.settings = {
        binary_cache.public_url = mkDefault "https://${cfg.nginx.hostName}/nix-cache";
        # What nginx says of its clients is believed.
        trusted_proxies = mkDefault [
          "127.0.0.1"
          "::1"
        ];
      };
      services.nginx = {
        enable = true;
        recommendedProxySettings = mkDefault true;
        virtualHosts.${cfg.nginx.hostName} = {
          enableACME = mkIf cfg.nginx.acme true;
          forceSSL = mkDefault true;
          locations."/" = {
            proxyPass = "http://${upstream}:${toString port}";
            # Layers are streamed as they are packed, and manifests may take nix.wait_timeout.
            extraConfig = ''
              proxy_buffering off;
              proxy_http_version 1.1;
              proxy_read_timeout ${toString (builtins.ceil (settings.nix.wait_timeout or 60) + 30)}s;
            '';
          };
        };
      };
    })
  ]);
}
