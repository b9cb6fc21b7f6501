{
  services.nixery-snap = {
    enable = true;
    openFirewall = true;
    nginx.enable = true;
    nginx.hostName = "registry.example";
    secretKeyFile = "/run/secrets/signing-key"; # its old name
    sourceSecrets.internal.tokenFile = "/run/secrets/git-token";
    sourceSecrets.default.netrcFile = "/run/secrets/netrc";
    metrics.openFirewall = true;
    credentials.buckets = "/run/secrets/buckets";
    environmentFiles = [ "/run/secrets/bucket-keys" ];
    settings = {
      source = "git+https://git.example/nixpkgs.git";
      format = "nix-snapshotter";
      meta_packages.debug = [
        "strace"
        "gdb"
      ];
      sources.internal = {
        spec = "git+https://git.example/pkgs.git";
        prefix = "internal";
        lfs = true;
        nixpkgs_config.allowUnfree = true;
      };
      substituters = [
        {
          url = "https://cache.example";
          public_keys = [ "cache.example-1:dPTPs93V5Eai8xC4JnVkYD8tpVQAQ5jzZqKhPeXHbaE=" ];
          priority = 20;
        }
        { url = "https://plain.example"; }
      ];
      limits.shutdown_timeout = 2.5;
      metrics.listen = "0.0.0.0:9090";
    };
  };
}
