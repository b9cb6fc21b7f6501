{
  services.nixery-snap-cache = {
    enable = true;
    priority = 50;
    upstreams = [
      {
        url = "https://cache.nixos.org";
        publicKeys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
      }
    ];
  };
  services.nixery-snap.nginx = {
    enable = true;
    hostName = "cache.example";
    acme = false;
  };
}
