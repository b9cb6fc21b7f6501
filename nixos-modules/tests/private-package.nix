# A package that no cache has is built and published by the registry, and fetched by another machine; so is a path
# that somebody pushes by hand.
{
  pkgs,
  registry,
  address,
  publicKey,
  ...
}:
{
  name = "nixery-snap-private-package";
  nodes = {
    inherit registry;
    other = {
      nix.settings = {
        substituters = pkgs.lib.mkForce [ "http://${address}/nix-cache" ];
        trusted-public-keys = [ publicKey ];
        experimental-features = [ "nix-command" ];
      };
    };
  };
  testScript = ''
    import json

    start_all()
    registry.wait_for_unit("nixery-snap.service")
    other.wait_for_unit("multi-user.target")
    other.wait_until_succeeds("curl -sf http://${address}/readyz")
    accept = "-H 'Accept: application/vnd.oci.image.manifest.v1+json'"
    manifest = json.loads(
        other.succeed(f"curl -sf {accept} http://${address}/v2/nix-snapshotter/private/manifests/latest")
    )
    annotations = manifest["layers"][-1]["annotations"]
    [path] = [value for value in annotations.values() if value.endswith("-private")]
    other.fail(f"test -e {path}")
    other.succeed(f"nix-store --realise {path}")
    assert "of our own" in other.succeed(f"{path}/bin/private")

    registry.succeed("echo by hand > /tmp/note")
    note = registry.succeed("nix-store --add /tmp/note").strip()
    registry.succeed(f"nixery-snap push --config /etc/nixery-snap/settings.toml {note}")
    other.succeed(f"nix-store --realise {note}")
    assert other.succeed(f"cat {note}") == "by hand\n"
  '';
}
