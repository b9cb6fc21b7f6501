# nixpkgs with nixery-snap.
final: _: { nixery-snap = final.callPackage ./package.nix { }; }
