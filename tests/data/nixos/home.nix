{
  services.nixery-snap-node = {
    enable = true;
    uid = 1000;
    registry = "http://10.0.0.1:8080#registry-1:dPTPs93V5Eai8xC4JnVkYD8tpVQAQ5jzZqKhPeXHbaE=";
    containerdConfigVersion = 2;
  };
}
