# What containerd must be told to run snapshotter images, in the form of its release: version 2 for 1.7, version 3
# for 2.x, where the keys of CRI have moved. A set for `virtualisation.containerd.settings`.
{
  version, # of the configuration: 2 or 3
  address, # nix-snapshotter's socket
  platform, # such as linux/amd64
  certsDirectory ? "/etc/containerd/certs.d",
  cni ? { }, # where CRI finds network plugins and their configuration
}:
let
  cri = {
    snapshotter = "nix";
    # The annotations name the store paths.
    disable_snapshot_annotations = false;
  };
  registry.config_path = certsDirectory;
in
{
  inherit version;
  proxy_plugins.nix = {
    type = "snapshot";
    inherit address;
  };
  plugins = {
    # Whatever comes by the transfer service (imports of the image service, pulls of 2.x) is unpacked with it.
    "io.containerd.transfer.v1.local".unpack_config = [
      {
        inherit platform;
        snapshotter = "nix";
      }
    ];
  }
  // {
    "2"."io.containerd.grpc.v1.cri" = {
      containerd = cri;
      inherit registry;
    }
    // (if cni == { } then { } else { inherit cni; });
    "3" = {
      "io.containerd.cri.v1.images" = cri // {
        inherit registry;
      };
    }
    // (if cni == { } then { } else { "io.containerd.cri.v1.runtime" = { inherit cni; }; });
  }
  .${toString version};
}
