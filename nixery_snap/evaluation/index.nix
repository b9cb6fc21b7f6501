# Lists what is in a package set, a few attributes at a time, without asking what any package depends on.
# `set` is as for `resolve.nix`; `request` is JSON: { paths = [ [ ] [ "python3Packages" ] … ]; }
# Answers one set per path, in order: { names; } for the package set itself and for sets that say
# recurseForDerivations, { outputs; description; } for packages, { } for all others and what fails. See `indexing.py`.
set: request:
let
  inherit (builtins) attrNames deepSeq elemAt filter foldl' fromJSON genList isAttrs isList isString length tryEval unsafeDiscardStringContext;

  packageSet = import ./package_set.nix (fromJSON set);

  maxOutputs = 32;
  take = n: list: genList (elemAt list) (if length list < n then length list else n);
  orElse = default: value: let tried = tryEval (deepSeq value value); in if tried.success then tried.value else default;

  describe = path: value:
    if isAttrs value && value.type or null == "derivation" then {
      outputs = let outputs = value.outputs or [ "out" ]; in
        orElse [ ] (if isList outputs then take maxOutputs (filter isString outputs) else [ ]);
      description = orElse "" (
        let text = value.meta.description or null; in if isString text then unsafeDiscardStringContext text else "");
    }
    else if isAttrs value && (path == [ ] || value.recurseForDerivations or false == true) then {
      names = filter (name: name != "recurseForDerivations") (attrNames value);
    }
    else { };
in
map (path: orElse { } (describe path (foldl' (value: name: value.${name}) packageSet path))) (fromJSON request).paths
