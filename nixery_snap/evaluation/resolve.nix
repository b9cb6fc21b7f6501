# Looks packages up in a package set. What it is asked reaches it as JSON:
#   set      what package_set.nix is given
#   request  { names = [ [ "attr" "path" ] … ]; explain = false; }
# The answer is { results; attributes; }: one result per name, in order, and for each set in which something was
# missing the names that it has, by its path as JSON. See `answers.py` for what becomes of them.
# With `explain`, an error is not caught but stops the evaluation, so that Nix prints its message.
# What does not depend on the request stands outside of it: an evaluator that lives on does that once.
set:
let
  inherit (builtins)
    all attrNames concatMap deepSeq elem elemAt filter fromJSON head isAttrs isInt isList isString length
    listToAttrs map match replaceStrings stringLength substring tail toJSON tryEval typeOf
    unsafeDiscardStringContext;

  packageSet = import ./package_set.nix (fromJSON set);

  letters = text: map (i: substring i 1 text) (genNumbers (stringLength text));
  genNumbers = n: builtins.genList (i: i) n;
  take = n: list: map (elemAt list) (genNumbers (if length list < n then length list else n));
  lower = replaceStrings (letters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (letters "abcdefghijklmnopqrstuvwxyz");

  orElse = default: value: let tried = tryEval (deepSeq value value); in if tried.success then tried.value else default;

  isDerivation = value: isAttrs value && value.type or null == "derivation";

  # The attribute of `set` that `name` means: written so, or the first whose lower-case form it is; image
  # names hold no capitals. A leading digit is not legal in Nix, so such attributes begin with "_".
  find = set: name:
    let
      spellings = [ name ] ++ (if match "[0-9].*" name != null then [ "_${name}" ] else [ ]);
      exact = filter (spelling: set ? ${spelling}) spellings;
      folded = filter (attribute: elem (lower attribute) spellings) (attrNames set);
    in
      if exact != [ ] then head exact else if folded != [ ] then head folded else null;

in
request:
let
  query = fromJSON request;
  attempt = if query.explain then value: { success = true; inherit value; } else tryEval;

  # Walks down from `value`, which stands at `path` below `parent`.
  walk = path: parent: value: rest:
    let tried = attempt value; in
    if !tried.success then { status = "failed"; }
    else if rest == [ ] then describe path parent tried.value
    else if !isAttrs tried.value then { status = "wrong-kind"; kind = typeOf tried.value; inherit path; examples = [ ]; }
    else
      let name = find tried.value (head rest); in
      if name == null then { status = "missing"; inherit path; name = head rest; }
      else walk (path ++ [ name ]) tried.value tried.value.${name} (tail rest);

  describe = path: parent: value:
    let
      kind = attempt (if isDerivation value then "derivation" else typeOf value);
      package = attempt (let facts = derivationFacts path parent value; in deepSeq facts facts);
    in
    if !kind.success then { status = "failed"; }
    else if kind.value != "derivation" then {
      status = "wrong-kind"; kind = kind.value; inherit path;
      examples = if isAttrs value then take 6 (filter (name: name != "recurseForDerivations") (attrNames value)) else [ ];
    }
    else if !package.success then { status = "failed"; }
    else { status = "package"; } // package.value;

  derivationFacts = path: parent: value:
    let
      meta = value.meta or { };
      last = elemAt path (length path - 1);
      # `openssl.dev` names one output of a package; nixpkgs marks such values too.
      installed =
        if isDerivation parent && elem last (parent.outputs or [ ]) then [ last ]
        else if value.outputSpecified or false then [ value.outputName ]
        else let
          declared = orElse [ ] (meta.outputsToInstall or [ ]);
          known = filter (output: elem output (value.outputs or [ "out" ])) (if isList declared then declared else [ ]);
        in if known != [ ] then known else [ (value.outputName or "out") ];
      # One license, a list of them, or an expression over several.
      spdxIds = license:
        if isList license then concatMap spdxIds license
        else if !isAttrs license then [ ]
        else if isString (license.spdxId or null) then [ license.spdxId ]
        else spdxIds (license.licenses or [ ]);
      program = meta.mainProgram or null;
    in {
      attribute = path;
      name = unsafeDiscardStringContext (toString value.name);
      drvPath = unsafeDiscardStringContext value.drvPath;
      outputs = listToAttrs (map (output: {
        name = output;
        value = unsafeDiscardStringContext "${if isDerivation parent && elem last (parent.outputs or [ ]) then value.outPath else value.${output}.outPath}";
      }) installed);
      mainProgram = orElse null (
        if isString program && match "[^/[:cntrl:]]+" program != null then unsafeDiscardStringContext program else null);
      licenses = orElse [ ] (spdxIds (meta.license or [ ]));
      priority = orElse 5 (if isInt (meta.priority or null) then meta.priority else 5);
    };

  results = map (walk [ ] null packageSet) query.names;
  setAt = builtins.foldl' (set: name: set.${name}) packageSet;
  attributes = listToAttrs (map (result: {
    name = toJSON result.path;
    value = attrNames (setAt result.path);
  }) (filter (result: result.status == "missing") results));
in
assert all isList query.names;
# Forces the set even for no names: tells a broken set from a broken package.
if isAttrs packageSet then { inherit results attributes; }
else throw "the package set is a ${typeOf packageSet}, not a set of packages"
