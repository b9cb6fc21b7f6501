{
  nix.enable = false;
  services.nixery-snap = {
    enable = true;
    socketActivation = false;
    openFirewall = true;
    user = "images";
    group = "images";
    settings = {
      listen = "0.0.0.0:5000";
      storage = "file:///srv/images";
      nix.store = "/srv/nix";
      workers = 2;
    };
  };
}
