# Settings as TOML; where `check` says so a system with settings that the program would refuse cannot be built.
{
  pkgs,
  package,
  settings,
  check,
}:
let
  file = (pkgs.formats.toml { }).generate "nixery-snap.toml" settings;
in
if check then
  pkgs.runCommand "nixery-snap-checked.toml"
    {
      inherit file;
      nativeBuildInputs = [ package ];
    }
    ''
      nixery-snap check-config --config "$file" > /dev/null
      cp "$file" "$out"
    ''
else
  file
