# As much of nixpkgs' lib as our Nix files use, under the same names and with the same meaning.
let
  inherit (builtins) all any attrNames concatMap concatStringsSep elem elemAt filter foldl' head isAttrs isList isString
    length listToAttrs map mapAttrs match replaceStrings split stringLength substring tail;

  lib = rec {
    inherit (builtins) attrNames attrValues concatStringsSep elem filter hasAttr head isAttrs isList isString length
      listToAttrs mapAttrs tail toJSON;
    concatMap = builtins.concatMap;

    id = value: value;
    nameValuePair = name: value: { inherit name value; };
    mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    filterAttrs = keep: set: removeAttrs set (filter (name: !(keep name set.${name})) (attrNames set));
    genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
    concatMapAttrs = f: set: foldl' (all: name: all // f name set.${name}) { } (attrNames set);
    optionalAttrs = condition: set: if condition then set else { };
    optional = condition: value: if condition then [ value ] else [ ];
    optionals = condition: list: if condition then list else [ ];
    optionalString = condition: text: if condition then text else "";
    toList = value: if isList value then value else [ value ];
    last = list: elemAt list (length list - 1);
    flatten = value: if isList value then concatMap flatten value else [ value ];
    unique = foldl' (seen: value: if elem value seen then seen else seen ++ [ value ]) [ ];
    attrByPath = path: default: set:
      if path == [ ] then set
      else if set ? ${head path} then attrByPath (tail path) default set.${head path}
      else default;
    hasAttrByPath = path: set: path == [ ] || set ? ${head path} && hasAttrByPath (tail path) set.${head path};
    setAttrByPath = path: value: if path == [ ] then value else { ${head path} = setAttrByPath (tail path) value; };
    recursiveUpdate = left: right:
      if isAttrs left && isAttrs right then
        left // mapAttrs (name: value: if left ? ${name} then recursiveUpdate left.${name} value else value) right
      else right;

    isDerivation = value: value.type or "" == "derivation";
    mapAttrsRecursiveCond = condition: f: set:
      let
        recurse = path: mapAttrs (name: value:
          if isAttrs value && condition value then recurse (path ++ [ name ]) value else f (path ++ [ name ]) value);
      in
      recurse [ ] set;

    splitString = separator: text: filter isString (split (escapeRegex separator) text);
    escapeRegex = replaceStrings [ "." "[" "]" "(" ")" "*" "+" "?" "^" "$" "|" "{" "}" "\\" ]
      [ "\\." "\\[" "\\]" "\\(" "\\)" "\\*" "\\+" "\\?" "\\^" "\\$" "\\|" "\\{" "\\}" "\\\\" ];
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    hasInfix = infix: text: match ".*${escapeRegex infix}.*" text != null;
    removePrefix = prefix: text:
      if hasPrefix prefix text then substring (stringLength prefix) (stringLength text) text else text;
    removeSuffix = suffix: text:
      let kept = stringLength text - stringLength suffix; in
      if kept >= 0 && substring kept (-1) text == suffix then substring 0 kept text else text;
    any = builtins.any;
    concatLines = lines: concatStringsSep "" (map (line: line + "\n") lines);
    concatMapStringsSep = separator: f: list: concatStringsSep separator (map f list);
    toInt = text: builtins.fromJSON text;
    boolToString = value: if value then "true" else "false";
    versionAtLeast = left: right: builtins.compareVersions left right >= 0;
    escapeShellArg = text: "'${replaceStrings [ "'" ] [ "'\\''" ] (toString text)}'";
    escapeShellArgs = concatMapStringsSep " " escapeShellArg;
    makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
    getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname or package.name}";
    getExe' = package: program: "${package}/bin/${program}";
    literalExpression = text: { _type = "literalExpression"; inherit text; };
    literalMD = text: { _type = "literalMD"; inherit text; };
    warn = message: builtins.trace "warning: ${message}";
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    fileset = {
      unions = map (path: if builtins.pathExists path then path else throw "${toString path} does not exist");
      toSource = { root, fileset }: { inherit root fileset; };
    };
    licenses.asl20.spdxId = "Apache-2.0";
    platforms = {
      linux = [ "x86_64-linux" "aarch64-linux" ];
      darwin = [ "x86_64-darwin" "aarch64-darwin" ];
    };
  };
in
lib
