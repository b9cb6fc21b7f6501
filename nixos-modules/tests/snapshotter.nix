# A snapshotter image on a node whose Nix store has nothing of it, straight from the registry.
{
  pkgs,
  nixosModules,
  registry,
  address,
  publicKey,
  ...
}:
{
  name = "nixery-snap-snapshotter";
  nodes = {
    inherit registry;
    node = {
      imports = [ nixosModules.node ];
      virtualisation = {
        writableStore = true;
        diskSize = 4096;
      };
      nix.settings.substituters = pkgs.lib.mkForce [ "http://${address}/nix-cache" ];
      services.nixery-snap-node = {
        enable = true;
        registry = "http://${address}#${publicKey}";
      };
    };
  };
  testScript = ''
    start_all()
    registry.wait_for_unit("nixery-snap.service")
    node.wait_for_unit("containerd.service")
    node.wait_for_unit("nixery-snap-image-service.service")
    node.fail("test -e ${pkgs.hello}")
    pull = "ctr images pull --plain-http --snapshotter nix ${address}/nix-snapshotter/hello:latest"
    node.succeed(pull)
    node.succeed("test -e ${pkgs.hello}")
    run = "ctr run --rm --snapshotter nix ${address}/nix-snapshotter/hello:latest {} hello"
    assert "Hello, world!" in node.succeed(run.format("first"))
    # What is in use survives a collection.
    node.succeed("nix-collect-garbage")
    assert "Hello, world!" in node.succeed(run.format("second"))
  '';
}
