# TOML from Nix values: keys in order, plain values first, then tables, then arrays of tables.
lib:
let
  inherit (builtins) all attrNames concatStringsSep filter isAttrs isList map match toJSON;
  isTable = value: isAttrs value && !(value ? outPath);
  isTables = value: isList value && value != [ ] && all isTable value;
  key = name: if match "[A-Za-z0-9_-]+" name != null then name else toJSON name;
  inline = value:
    if isTable value then "{ ${concatStringsSep ", " (map (name: "${key name} = ${inline value.${name}}") (attrNames value))} }"
    else if isList value then "[${lib.concatMapStringsSep ", " inline value}]"
    else if isAttrs value || builtins.isPath value then toJSON (toString value)
    else if value == null then throw "TOML has no null"
    else toJSON value;
  table = path: value:
    let
      at = name: path ++ [ (key name) ];
      names = attrNames value;
      plain = filter (name: !isTable value.${name} && !isTables value.${name}) names;
      tables = filter (name: isTable value.${name}) names;
      arrays = filter (name: isTables value.${name}) names;
      heading = open: name: close: "\n${open}${concatStringsSep "." (at name)}${close}\n";
      leaf = name: all (inner: isTable value.${name}.${inner}) (attrNames value.${name}) && value.${name} != { };
    in
    concatStringsSep "" (
      map (name: "${key name} = ${inline value.${name}}\n") plain
      ++ map (name: (if leaf name then "" else heading "[" name "]") + table (at name) value.${name}) tables
      ++ lib.concatMap (name: map (one: heading "[[" name "]]" + table (at name) one) value.${name}) arrays
    );
in
value: lib.removePrefix "\n" (table [ ] value)
