{
  services.k3s.enable = true;
  services.nixery-snap-node = {
    enable = true;
    registry = "registry.example#registry-1:dPTPs93V5Eai8xC4JnVkYD8tpVQAQ5jzZqKhPeXHbaE=";
    orchestrator = "k3s";
  };
}
