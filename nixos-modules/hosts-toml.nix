# containerd's hosts.toml of the registry.
{ pkgs, url }:
(pkgs.formats.toml { }).generate "hosts.toml" {
  server = url;
  host.${url}.capabilities = [
    "pull"
    "resolve"
  ];
}
