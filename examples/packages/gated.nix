# What `meta` forbids until `config` allows it.
{ lib, mk, ... }:
{
  unfreeTool = mk { pname = "unfree-tool"; script = "echo u > $out"; meta.license = lib.licenses.unfree; };
  brokenTool = mk { pname = "broken-tool"; script = "echo b > $out"; meta.broken = true; };
  insecureTool = mk { pname = "insecure-tool"; script = "echo i > $out"; meta.knownVulnerabilities = [ "CVE-2024-0001" ]; };
  x86Only = mk { pname = "x86-only"; script = "echo x > $out"; meta.platforms = [ "x86_64-linux" ]; };
}
