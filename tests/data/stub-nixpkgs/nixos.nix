# Those options of NixOS and home-manager that our modules set, with the types that they have there, and units as text.
{ lib, pkgs }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  names = option (types.listOf types.str) [ ];
  toml = (pkgs.formats.toml { }).type;
  freeform = option (types.attrsOf types.anything) { };
  values = types.attrsOf (types.oneOf [ types.bool types.int types.str types.path (types.listOf types.raw) ]);

  unit = {
    enable = option types.bool true;
    description = option types.str "";
    documentation = names;
    after = names;
    before = names;
    wants = names;
    requires = names;
    bindsTo = names;
    partOf = names;
    wantedBy = names;
    unitConfig = option values { };
    restartTriggers = option (types.listOf types.raw) [ ];
    reloadTriggers = option (types.listOf types.raw) [ ];
  };
  service = unit // {
    environment = option (types.attrsOf (types.nullOr types.str)) { };
    path = option (types.listOf (types.either types.package types.str)) [ ];
    script = option types.lines "";
    serviceConfig = option values { };
    stopIfChanged = option types.bool true;
    restartIfChanged = option types.bool true;
  };
  units = options: option (types.attrsOf (types.submodule { inherit options; })) { };

  lines = name: value: lib.concatMapStringsSep "" (one: "${name}=${shown one}\n") (lib.toList value);
  shown = value: if builtins.isBool value then lib.boolToString value else toString value;
  section = name: settings:
    lib.optionalString (settings != { }) "[${name}]\n${lib.concatStringsSep "" (lib.mapAttrsToList lines settings)}\n";
  words = name: list: lib.optionalAttrs (list != [ ]) { ${name} = lib.concatStringsSep " " (map toString list); };
  headOf = given:
    section "Unit" (
      { Description = given.description; }
      // words "Documentation" given.documentation
      // words "After" given.after
      // words "Before" given.before
      // words "Wants" given.wants
      // words "Requires" given.requires
      // words "BindsTo" given.bindsTo
      // words "PartOf" given.partOf
      // words "X-Restart-Triggers" given.restartTriggers
      // words "X-Reload-Triggers" given.reloadTriggers
      // given.unitConfig
    );
  foot = given: section "Install" (words "WantedBy" given.wantedBy);
  serviceText = name: given:
    headOf given
    + section "Service" (
      {
        Environment = lib.mapAttrsToList (variable: value: builtins.toJSON "${variable}=${value}") (
          lib.optionalAttrs (given.path != [ ]) { PATH = lib.makeBinPath given.path; } // given.environment
        );
      }
      // lib.optionalAttrs (given.script != "") { ExecStart = pkgs.writeShellScript "${name}-start" given.script; }
      // given.serviceConfig
    )
    + foot given;
  # Checked settings show what is checked.
  etc = lib.mapAttrs' (name: given: lib.nameValuePair (builtins.replaceStrings [ "/" ":" ] [ "_" "_" ] name) (
    if given.text != null then given.text else given.source.text or given.source.environment.file.text
  ));
in
{
  nixos = { config, ... }: {
    options = {
      assertions = option (types.listOf types.raw) [ ];
      warnings = names;
      environment = {
        etc = option (types.attrsOf (types.submodule {
          options = {
            source = option types.path null;
            text = option (types.nullOr types.lines) null;
            mode = option types.str "symlink";
          };
        })) { };
        systemPackages = option (types.listOf types.package) [ ];
      };
      networking = {
        hostName = option types.str "machine";
        firewall.allowedTCPPorts = option (types.listOf types.port) [ ];
      };
      nix = {
        enable = option types.bool true;
        package = option types.package pkgs.nix;
        settings = freeform // { type = types.submodule {
          freeformType = types.attrsOf types.raw;
          options = lib.genAttrs [ "substituters" "trusted-substituters" "extra-substituters" "trusted-public-keys"
            "extra-trusted-public-keys" "experimental-features" ] (_: names);
        }; };
        extraOptions = option types.lines "";
      };
      security.acme.acceptTerms = option types.bool false;
      services = {
        k3s = {
          enable = option types.bool false;
          package = option types.package pkgs.k3s;
          role = option types.str "server";
          extraFlags = option (types.either types.str (types.listOf types.str)) [ ];
          images = option (types.listOf types.package) [ ];
        };
        kubernetes.kubelet = {
          enable = option types.bool false;
          extraOpts = option (types.separatedString " ") "";
          containerRuntimeEndpoint = option types.str "unix:///run/containerd/containerd.sock";
        };
        nginx = {
          enable = option types.bool false;
          recommendedProxySettings = option types.bool false;
          virtualHosts = option (types.attrsOf (types.submodule {
            options = lib.genAttrs [ "enableACME" "forceSSL" "addSSL" "onlySSL" ] (_: option types.bool false) // {
              useACMEHost = option (types.nullOr types.str) null;
              sslCertificate = option (types.nullOr types.path) null;
              sslCertificateKey = option (types.nullOr types.path) null;
              extraConfig = option types.lines "";
              locations = option (types.attrsOf (types.submodule {
                options = {
                  proxyPass = option (types.nullOr types.str) null;
                  return = option (types.nullOr types.str) null;
                  extraConfig = option types.lines "";
                };
              })) { };
            };
          })) { };
        };
      };
      specialisation = option (types.attrsOf (types.submodule { options.configuration = option types.raw { }; })) { };
      system.stateVersion = option types.str "";
      systemd = {
        services = units service;
        sockets = units (unit // {
          listenStreams = names;
          socketConfig = option values { };
        });
        package = option types.package pkgs.systemd;
        tmpfiles.rules = names;
      };
      users = {
        users = option (types.attrsOf (types.submodule {
          options = {
            isSystemUser = option types.bool false;
            group = option types.str "";
            home = option types.str "/var/empty";
            description = option types.str "";
            extraGroups = names;
          };
        })) { };
        groups = option (types.attrsOf (types.submodule { options.members = names; })) { };
      };
      virtualisation = {
        containerd = {
          enable = option types.bool false;
          settings = option toml { };
        };
        docker = {
          enable = option types.bool false;
          daemon.settings = freeform;
        };
        # Of VM tests.
        memorySize = option types.ints.positive 1024;
        diskSize = option types.ints.positive 1024;
        cores = option types.ints.positive 1;
        writableStore = option types.bool true;
        additionalPaths = option (types.listOf types.package) [ ];
      };

      # What the tests look at.
      rendered = option types.raw { };
    };
    config = {
      # As there, at the usual priority: what modules add comes beside it, and another version must be forced.
      virtualisation.containerd.settings = lib.mkIf config.virtualisation.containerd.enable { version = 2; };
      rendered = {
        # Every file that the configuration comes to, and what it sets of others as JSON.
        files =
          lib.mapAttrs' (name: given: lib.nameValuePair "${name}.service" (serviceText name given)) config.systemd.services
          // lib.mapAttrs' (name: given: lib.nameValuePair "${name}.socket" (
            headOf given + section "Socket" ({ ListenStream = given.listenStreams; } // given.socketConfig) + foot given
          )) config.systemd.sockets
          // lib.concatMapAttrs (name: given: lib.optionalAttrs (given.script != "") { "${name}-start" = given.script; })
            config.systemd.services
          // lib.optionalAttrs config.virtualisation.containerd.enable {
            "containerd.toml" = pkgs.toToml config.virtualisation.containerd.settings;
          }
          // etc config.environment.etc
          // {
            "others.json" = builtins.toJSON {
              inherit (config.networking) firewall;
              nix = { inherit (config.nix) settings extraOptions; };
              k3s = config.services.k3s.extraFlags;
              kubelet = config.services.kubernetes.kubelet.extraOpts;
              nginx = config.services.nginx.virtualHosts;
              tmpfiles = config.systemd.tmpfiles.rules;
              users = config.users;
            };
          };
        failures = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
        inherit (config) warnings;
      };
    };
  };

  home = { config, ... }: {
    options = {
      assertions = option (types.listOf types.raw) [ ];
      warnings = names;
      home.packages = option (types.listOf types.package) [ ];
      nix = {
        package = option (types.nullOr types.package) null;
        settings = option (types.attrsOf (types.either types.str (types.listOf types.str))) { };
      };
      systemd.user.services = option (types.attrsOf (types.attrsOf (types.attrsOf types.raw))) { };
      xdg = {
        configHome = option types.str "/home/user/.config";
        dataHome = option types.str "/home/user/.local/share";
      } // { configFile = option (types.attrsOf (types.submodule {
        options = {
          source = option (types.nullOr types.path) null;
          text = option (types.nullOr types.lines) null;
        };
      })) { }; };
      rendered = option types.raw { };
    };
    config.rendered = {
      files =
        lib.mapAttrs' (name: given: lib.nameValuePair "${name}.service" (
          lib.concatMapStringsSep "" (part: section part (given.${part} or { })) [ "Unit" "Service" "Install" ]
        )) config.systemd.user.services
        // etc config.xdg.configFile
        // { "others.json" = builtins.toJSON { nix = config.nix.settings; }; };
      failures = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
      inherit (config) warnings;
    };
  };
}
