# The package set itself. `given` is the parsed JSON that `question.py` makes:
#   { flake = null; directory = "/path"; overlays = [ "/path" … ]; config = { … }; system = "x86_64-linux"; }
#   or, instead of `directory`, { flake = "path:/path?narHash=…"; … }
given:
let
  inherit (builtins) functionArgs intersectAttrs isFunction replaceStrings toXML;

  # A package set may be a plain set or a function; it is given of these what it names.
  arguments = { inherit (given) system config; overlays = map (path: import (/. + path)) given.overlays; };
  call = value:
    if !isFunction value then value
    else let formals = functionArgs value; xml = toXML value;
         # `arguments: …` and `{ }: …` both have no formals; only the first takes what it is given.
         in value (if formals == { } && replaceStrings [ "<attrspat" ] [ "" ] xml == xml then arguments
                   else intersectAttrs formals arguments);
  outputs = builtins.getFlake given.flake;
in
if given.flake == null then call (import (/. + given.directory))
else (outputs.packages.${given.system} or { }) // (outputs.legacyPackages.${given.system} or { })
