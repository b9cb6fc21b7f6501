# A pod whose image no registry serves: it is assembled on the node from the node's own package set.
{
  pkgs,
  nixosModules,
  packageSet,
  contents,
  ...
}:
let
  pod = pkgs.writeText "pod.json" (
    builtins.toJSON {
      apiVersion = "v1";
      kind = "Pod";
      metadata.name = "hello";
      spec = {
        restartPolicy = "Never";
        containers = [
          {
            name = "hello";
            image = "nix:0/shell/hello";
            command = [ "hello" ];
          }
        ];
      };
    }
  );
in
{
  name = "nixery-snap-k3s";
  nodes.node =
    { config, ... }:
    {
      imports = [ nixosModules.node ];
      virtualisation = {
        memorySize = 3072;
        diskSize = 8192;
        additionalPaths = contents ++ [ pkgs.path ];
      };
      services.k3s = {
        enable = true;
        role = "server";
        extraFlags = [
          "--disable=coredns,local-storage,metrics-server,servicelb,traefik"
          "--disable-network-policy"
        ];
      };
      services.nixery-snap-node = {
        enable = true;
        orchestrator = "k3s";
        imageService.settings = {
          source = "path:${packageSet}";
          substituters = [ ];
        };
      };
      # The pause image, which k3s brings along for its own containerd.
      systemd.services.pause-image = {
        wantedBy = [ "k3s.service" ];
        before = [ "k3s.service" ];
        after = [ "containerd.service" ];
        path = [
          pkgs.containerd
          pkgs.zstd
        ];
        script = ''
          zstd -dc ${config.services.k3s.package.airgap-images} | ctr --namespace k8s.io images import -
        '';
        serviceConfig.Type = "oneshot";
      };
    };
  testScript = ''
    start_all()
    node.wait_for_unit("k3s.service")
    node.wait_until_succeeds("k3s kubectl get serviceaccount default")
    node.succeed("k3s kubectl apply -f ${pod}")
    node.wait_until_succeeds("k3s kubectl logs hello | grep -q 'Hello, world!'")
    node.wait_until_succeeds("k3s kubectl get pod hello -o jsonpath='{.status.phase}' | grep -q Succeeded")
  '';
}
