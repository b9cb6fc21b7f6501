# containerd 1.7, a registry whose key is asked for, a group of the kubelet's own.
{
  services.kubernetes.kubelet = {
    enable = true;
    extraOpts = "--v=2";
  };
  services.nixery-snap-node = {
    enable = true;
    registry = "registry.example:8443";
    orchestrator = "kubelet";
    configVersion = 2; # its old name
    imageService.group = "kubelet";
    snapshotter.settings.root = "/srv/nix-snapshotter";
  };
}
