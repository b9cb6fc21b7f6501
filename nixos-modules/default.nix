# All modules by name.
{
  nixosModules = {
    registry = ./registry.nix;
    node = ./node.nix;
    binary-cache = ./binary-cache.nix;
  };
  homeModules.node = ./home-manager.nix;
}
