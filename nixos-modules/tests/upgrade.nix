# Restarts, changed settings and another package of the program keep images, keys and the listening socket.
{
  pkgs,
  package,
  registry,
  ...
}:
{
  name = "nixery-snap-upgrade";
  nodes.registry = {
    imports = [ registry ];
    specialisation = {
      settings.configuration.services.nixery-snap.settings.format = "nix-snapshotter";
      package.configuration.services.nixery-snap.package = pkgs.lib.mkForce (
        pkgs.symlinkJoin {
          name = "nixery-snap-next";
          paths = [ package ];
          meta.mainProgram = "nixery-snap";
        }
      );
    };
  };
  testScript = ''
    def digest():
        head = "curl -sfI http://127.0.0.1:8080/v2/classic/hello/manifests/latest"
        return registry.succeed(f"{head} | tr -d '\\r' | sed -n 's/^[Dd]ocker-[Cc]ontent-[Dd]igest: //p'").strip()

    def key():
        return registry.succeed("curl -sf http://127.0.0.1:8080/ | grep trusted-public-keys")

    def pid():
        return registry.succeed("systemctl show --property MainPID --value nixery-snap.service").strip()

    start_all()
    registry.wait_for_unit("nixery-snap.service")
    before = digest(), key()
    assert before[0].startswith("sha256:")

    with subtest("a restart"):
        registry.systemctl("restart nixery-snap.service")
        assert (digest(), key()) == before

    with subtest("changed settings are read in place"):
        running = pid()
        registry.succeed("/run/booted-system/specialisation/settings/bin/switch-to-configuration test")
        registry.wait_until_succeeds("curl -sf http://127.0.0.1:8080/ | grep -q /classic/shell/git")
        assert pid() == running
        assert (digest(), key()) == before

    with subtest("another release"):
        registry.succeed("/run/booted-system/specialisation/package/bin/switch-to-configuration test")
        registry.wait_for_unit("nixery-snap.service")
        assert "nixery-snap-next" in registry.succeed("systemctl cat nixery-snap.service")
        assert (digest(), key()) == before

    with subtest("a crash"):
        registry.succeed("systemctl kill --signal=KILL nixery-snap.service")
        registry.wait_until_succeeds("curl -sf http://127.0.0.1:8080/readyz")
        assert (digest(), key()) == before
  '';
}
