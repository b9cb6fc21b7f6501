# What the machines of the tests share. They have no network but each other: the package set is one of a few packages
# of the nixpkgs at hand, and what they need of it comes with the registry's machine.
{
  pkgs,
  nixosModules,
  package,
}:
let
  # For these tests alone.
  signingKey = "registry-1:R/A/uijO/c0okP5CUbKKq49xrhOM8UGrq6MN2f8dZknuk13+M2qeaxaj18PCPtd8PSP4r0/Q3++AFhRmIxGaCA==";
  publicKey = "registry-1:7pNd/jNqnmsWo9fDwj7XfD0j+K9P0N/vgBYUZiMRmgg=";
  packageSet = pkgs.writeTextDir "default.nix" ''
    { system, ... }:
    let
      nixpkgs = import ${pkgs.path} { inherit system; config = { }; overlays = [ ]; };
    in
    {
      inherit (nixpkgs) bashInteractive cacert coreutils hello iana-etc moreutils nano;
      # Nobody has it built.
      private = nixpkgs.writeShellScriptBin "private" "echo of our own";
    }
  '';
  # Everything that images are made of, and what a build of a script needs.
  contents = [
    packageSet
    pkgs.bash
    pkgs.bashInteractive
    pkgs.cacert
    pkgs.coreutils
    pkgs.hello
    pkgs.iana-etc
    pkgs.moreutils
    pkgs.nano
    pkgs.stdenv
  ];
in
{
  inherit
    pkgs
    nixosModules
    package
    publicKey
    packageSet
    contents
    ;

  # In front of an image's name, and where nodes find the binary cache.
  address = "registry:8080";

  registry = {
    imports = [ nixosModules.registry ];
    virtualisation = {
      memorySize = 3072;
      diskSize = 8192;
      additionalPaths = contents ++ [ pkgs.path ];
    };
    environment.etc.signing-key = {
      text = signingKey;
      mode = "0400";
    };
    services.nixery-snap = {
      enable = true;
      openFirewall = true;
      signingKeyFile = "/etc/signing-key";
      settings = {
        listen = "0.0.0.0:8080";
        source = "path:${packageSet}";
        substituters = [ ];
        binary_cache = {
          public_url = "http://registry:8080/nix-cache";
          publish = "all"; # no other cache is within reach
        };
        systems = [ pkgs.stdenv.hostPlatform.system ];
      };
    };
  };
}
