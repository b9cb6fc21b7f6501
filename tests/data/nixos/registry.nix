{
  services.nixery-snap.enable = true;
}
