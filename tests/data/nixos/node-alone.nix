# No registry: images are assembled on the node.
{
  services.nixery-snap-node = {
    enable = true;
    imageService.settings.source = "git+https://git.example/pkgs.git";
  };
}
