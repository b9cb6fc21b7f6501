# For those without flakes: `nix-build`, and `imports = [ (import ./. { }).nixosModules.registry ]`.
{
  pkgs ? import <nixpkgs> { },
}:
{
  nixery-snap = pkgs.callPackage ./nix/package.nix { };
  overlay = import ./nix/overlay.nix;
}
// import ./nixos-modules
