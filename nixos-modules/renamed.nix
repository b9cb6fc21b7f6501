# Options that have another name now: each is still taken, with a warning that says the new one. Modules that import
# one of these need nothing else. Entries stay for two releases.
let
  path = option: builtins.filter builtins.isString (builtins.split "\\." option);
  rename =
    renames:
    { lib, ... }:
    {
      imports = map (old: lib.mkRenamedOptionModule (path old) (path renames.${old})) (builtins.attrNames renames);
    };
in
{
  registry = rename {
    # As nix-serve calls it.
    "services.nixery-snap.secretKeyFile" = "services.nixery-snap.signingKeyFile";
  };
  node = rename {
    # As NixOS's modules of containerd and kubelet would call it.
    "services.nixery-snap-node.configVersion" = "services.nixery-snap-node.containerd.configVersion";
  };
}
