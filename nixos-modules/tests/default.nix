# Tests in virtual machines, as checks of the flake; docs/nixos.md says how to run them.
{
  pkgs,
  nixosModules,
  package,
}:
let
  common = import ./common.nix { inherit pkgs nixosModules package; };
  test = file: pkgs.testers.runNixOSTest (import file common);
in
{
  vm-docker = test ./docker.nix;
  vm-snapshotter = test ./snapshotter.nix;
  vm-k3s = test ./k3s.nix;
  vm-private-package = test ./private-package.nix;
  vm-upgrade = test ./upgrade.nix;
}
