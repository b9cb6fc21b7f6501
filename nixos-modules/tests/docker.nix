# A classic image, pulled and run by Docker.
{ registry, address, ... }:
{
  name = "nixery-snap-docker";
  nodes = {
    inherit registry;
    client = {
      virtualisation = {
        docker.enable = true;
        docker.daemon.settings.insecure-registries = [ address ];
        diskSize = 4096;
      };
    };
  };
  testScript = ''
    start_all()
    registry.wait_for_unit("nixery-snap.service")
    client.wait_for_unit("docker.service")
    assert "Hello, world!" in client.succeed("docker run --rm ${address}/hello hello")
    assert "of our own" in client.succeed("docker run --rm ${address}/shell/private private")
    digest = client.succeed("docker images --digests --format '{{.Digest}}' ${address}/hello").strip()
    assert digest in registry.succeed("curl -sI http://127.0.0.1:8080/v2/hello/manifests/latest")
    client.fail("docker pull ${address}/helo")
  '';
}
