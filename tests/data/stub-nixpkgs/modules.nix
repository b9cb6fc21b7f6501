# The module system of nixpkgs, as far as our modules use it: options, types, priorities, order, conditions, imports,
# submodules, freeform settings, renamed options. What it refuses, and in which words, is what nixpkgs refuses.
lib:
let
  inherit (builtins) all attrNames concatMap concatStringsSep elem filter foldl' functionArgs head isAttrs isFunction
    isInt isBool isFloat isPath isString length listToAttrs map mapAttrs match sort toJSON typeOf;

  has = kind: value: isAttrs value && value._type or "" == kind;
  showOption = concatStringsSep ".";
  get = path: set: foldl' (inner: name: inner.${name}) set path;

  defaultPriority = 100;
  defaultOrder = 1000;
  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkOrder = priority: content: { _type = "order"; inherit priority content; };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };

  # One definition of a set, with its conditions and priorities moved to its members.
  pushDown = value:
    if has "merge" value then concatMap pushDown value.contents
    else if has "if" value then map (mapAttrs (_: mkIf value.condition)) (pushDown value.content)
    else if has "override" value then map (mapAttrs (_: mkOverride value.priority)) (pushDown value.content)
    else if has "order" value then map (mapAttrs (_: mkOrder value.priority)) (pushDown value.content)
    else [ value ];

  # Definitions are { file, value } throughout.
  discharge = { file, value }:
    if has "merge" value then concatMap (value: discharge { inherit file value; }) value.contents
    else if has "if" value then
      if !isBool value.condition then throw "mkIf called with a non-boolean condition"
      else if value.condition then discharge { inherit file; value = value.content; } else [ ]
    else if has "override" value then
      map (inner: inner // { inherit (value) priority; }) (discharge { inherit file; value = value.content; })
    else [ { inherit file value; } ];

  strongest = definitions:
    let
      priorityOf = definition: definition.priority or defaultPriority;
      lowest = foldl' (low: d: if priorityOf d < low then priorityOf d else low) 9999 definitions;
    in
    filter (definition: priorityOf definition == lowest) definitions;

  inOrder = definitions:
    let orderOf = { value, ... }: if has "order" value then value.priority else defaultOrder; in
    map (d: { inherit (d) file; value = if has "order" d.value then d.value.content else d.value; })
      (sort (left: right: orderOf left < orderOf right) definitions);

  effective = definitions: inOrder (strongest (concatMap discharge definitions));

  show = definition:
    let shown = builtins.tryEval (toJSON definition.value); in
    "\n- In `${definition.file}'${if shown.success then ": ${shown.value}" else ""}";
  showAll = definitions: concatStringsSep "" (map show definitions);

  # What an option of this type at `loc` comes to.
  mergeDefinitions = loc: type: definitions:
    let wrong = filter (definition: !type.check definition.value) definitions; in
    if wrong != [ ] then
      throw "A definition for option `${showOption loc}' is not of type `${type.description}'. Definition values:${showAll wrong}"
    else type.merge loc definitions;

  mergeEqual = loc: definitions:
    let first = (head definitions).value; in
    if all (definition: definition.value == first) definitions then first
    else throw "The option `${showOption loc}' has conflicting definition values:${showAll definitions}\nUse `lib.mkForce value` or `lib.mkDefault value` to change the priority on any of these definitions.";

  mergeOne = loc: definitions:
    if length definitions == 1 then (head definitions).value
    else throw "The option `${showOption loc}' is defined multiple times while it's expected to be unique.${showAll definitions}";

  mkType = given: { merge = mergeEqual; options = _: { }; } // given;
  simple = name: description: check: mkType { inherit name description check; };

  types = rec {
    str = simple "str" "string" isString;
    bool = simple "bool" "boolean" isBool;
    int = simple "int" "signed integer" isInt;
    float = simple "float" "floating point number" isFloat;
    path = simple "path" "path" (value: isPath value || isString value && lib.hasPrefix "/" value || value ? outPath);
    package = mkType {
      name = "package";
      description = "package";
      check = value: isAttrs value && value.type or "" == "derivation";
      merge = mergeOne;
    };
    raw = mkType { name = "raw"; description = "raw value"; check = _: true; merge = mergeOne; };
    port = ints.between 0 65535;
    ints = {
      between = low: high:
        simple "intBetween" "integer between ${toString low} and ${toString high} (both inclusive)"
          (value: isInt value && value >= low && value <= high);
      positive = simple "positiveInt" "positive integer, meaning >0" (value: isInt value && value > 0);
      unsigned = simple "unsignedInt" "unsigned integer, meaning >=0" (value: isInt value && value >= 0);
    };
    strMatching = pattern:
      simple "strMatching" "string matching the pattern ${pattern}" (value: isString value && match pattern value != null);
    enum = values:
      simple "enum" "one of ${concatStringsSep ", " (map toJSON values)}" (value: elem value values);
    lines = mkType {
      name = "lines";
      description = "strings concatenated with \"\\n\"";
      check = isString;
      merge = _: definitions: concatStringsSep "\n" (map (definition: definition.value) definitions);
    };
    separatedString = separator: lines // {
      name = "separatedString";
      description = "strings concatenated with ${toJSON separator}";
      merge = _: definitions: concatStringsSep separator (map (definition: definition.value) definitions);
    };
    nullOr = inner: mkType {
      name = "nullOr";
      description = "null or ${inner.description}";
      check = value: value == null || inner.check value;
      merge = loc: definitions:
        if all (definition: definition.value == null) definitions then null
        else if builtins.any (definition: definition.value == null) definitions then
          throw "The option `${showOption loc}' is defined both null and not null, in:${showAll definitions}"
        else inner.merge loc definitions;
      options = inner.options;
    };
    either = left: right: mkType {
      name = "either";
      description = "${left.description} or ${right.description}";
      check = value: left.check value || right.check value;
      merge = loc: definitions:
        if all (definition: left.check definition.value) definitions then left.merge loc definitions
        else if all (definition: right.check definition.value) definitions then right.merge loc definitions
        else mergeEqual loc definitions;
    };
    oneOf = all: foldl' either (head all) (builtins.tail all);
    listOf = inner: mkType {
      name = "listOf";
      description = "list of ${inner.description}";
      check = builtins.isList;
      emptyValue = [ ];
      merge = loc: definitions:
        concatMap
          (definition: concatMap
            (value:
              let found = effective [ { inherit (definition) file; inherit value; } ]; in
              lib.optional (found != [ ]) (mergeDefinitions (loc ++ [ "*" ]) inner found))
            definition.value)
          definitions;
      options = loc: inner.options (loc ++ [ "*" ]);
    };
    attrsOf = inner: mkType {
      name = "attrsOf";
      description = "attribute set of ${inner.description}";
      check = isAttrs;
      emptyValue = { };
      merge = loc: definitions:
        let
          sets = concatMap (d: map (value: { inherit (d) file; inherit value; }) (pushDown d.value)) definitions;
          of = name: effective
            (concatMap ({ file, value }: lib.optional (value ? ${name}) { inherit file; value = value.${name}; }) sets);
          names = filter (name: of name != [ ]) (lib.unique (concatMap (d: attrNames d.value) sets));
        in
        lib.genAttrs names (name: mergeDefinitions (loc ++ [ name ]) inner (of name));
      options = loc: inner.options (loc ++ [ "<name>" ]);
    };
    attrs = attrsOf raw // { name = "attrs"; description = "attribute set"; };
    anything = mkType {
      name = "anything";
      description = "anything";
      check = _: true;
      merge = loc: definitions:
        if all (d: isAttrs d.value && !(d.value ? outPath)) definitions then (attrsOf anything).merge loc definitions
        else mergeEqual loc definitions;
    };
    submodule = module: mkType {
      name = "submodule";
      description = "submodule";
      check = value: isAttrs value || isFunction value || isPath value;
      emptyValue = (evaluate [ module ] [ ]).config;
      merge = loc: definitions:
        (evaluate' loc { name = lib.last loc; }
          (lib.toList module ++ map (d: { _file = d.file; imports = [ d.value ]; }) definitions)).config;
      options = loc: (evaluate' loc { name = lib.last loc; } (lib.toList module)).options;
    };
  };
  evaluate = modules: _: evaluate' [ ] { name = "<name>"; } modules;
  evaluate' = loc: specialArgs: modules: evalModules { inherit modules specialArgs; prefix = loc; };

  evalModules = { modules, specialArgs ? { }, prefix ? [ ] }:
    let
      arguments = { inherit lib; inherit (evaluated) config; options = records; } // specialArgs;

      # `key` tells modules apart: of those with one key the first counts.
      load = file: key: module:
        if isPath module || isString module then load (toString module) (toString module) (import module)
        else if isFunction module then
          let wanted = functionArgs module; in
          # With `...` a function gets everything, as there.
          load file key (module (if wanted == { } then arguments else
            mapAttrs (name: _: arguments.${name} or (throw "attribute '${name}' missing")) (
              lib.filterAttrs (name: optional: arguments ? ${name} || !optional) wanted)))
        else
          let
            structured = module ? options || module ? config;
            meta = [ "_file" "key" "imports" "freeformType" ];
            unknown = removeAttrs module (meta ++ [ "options" "config" "meta" ]);
            from = module._file or file;
            own = module.key or key;
          in
          if structured && unknown != { } then
            throw "Module `${from}' has an unsupported attribute `${head (attrNames unknown)}'. This is caused by introducing a top-level `config' or `options' attribute."
          else
            loadAll from own (module.imports or [ ]) ++ [
              {
                key = own;
                file = from;
                options = module.options or { };
                config = if structured then module.config or { } else removeAttrs module meta;
                freeform = lib.optional (module ? freeformType) module.freeformType;
              }
            ];
      loadAll = file: key: list:
        builtins.concatLists (builtins.genList
          (number: load file "${key}:anon-${toString number}" (builtins.elemAt list number))
          (length list));
      loaded =
        foldl' (seen: module: if elem module.key (map (one: one.key) seen) then seen else seen ++ [ module ]) [ ]
          (loadAll "<unknown-file>" "" modules);
      freeform = concatMap (module: module.freeform) loaded;

      declare = loc: left: right:
        if has "option" left || has "option" right then
          throw "The option `${showOption loc}' is already declared."
        else
          left // mapAttrs (name: value: if left ? ${name} then declare (loc ++ [ name ]) left.${name} value else value) right;
      declared = foldl' (declare prefix) { } (map (module: module.options) loaded);
      defined = concatMap (module: map (value: { inherit (module) file; inherit value; }) (pushDown module.config)) loaded;

      # The option's declaration with what it comes to.
      record = loc: option: definitions:
        let
          found = concatMap discharge definitions;
          withDefault = found ++ lib.optional (option ? default) {
            file = "<default>";
            value = option.default;
            priority = 1500;
          };
          chosen = inOrder (strongest withDefault);
          type = option.type or types.raw;
          value =
            if option.readOnly or false && length withDefault > 1 then
              throw "The option `${showOption loc}' is read-only, but it's set multiple times."
            else if withDefault != [ ] then mergeDefinitions loc type chosen
            else type.emptyValue or (throw "The option `${showOption loc}' was accessed but has no value defined. Try setting the option.");
        in
        option // {
          inherit loc type;
          isDefined = found != [ ];
          definitions = map (definition: definition.value) (inOrder (strongest found));
          value = (option.apply or lib.id) value;
        };

      walk = loc: options: definitions:
        let
          under = name: concatMap
            ({ file, value }: lib.optional (value ? ${name}) { inherit file; value = value.${name}; })
            definitions;
          unknown = filter ({ value, ... }: removeAttrs value (attrNames options) != { }) definitions;
          one = head unknown;
          names = attrNames (removeAttrs one.value (attrNames options));
          checked =
            if unknown == [ ] then { }
            else if loc == prefix && freeform != [ ] then
              (head freeform).merge loc
                (map (d: d // { value = removeAttrs d.value (attrNames options); }) unknown)
            else throw "The option `${showOption (loc ++ [ (head names) ])}' does not exist. Definition values:\n- In `${one.file}'";
          inner = mapAttrs
            (name: option:
              if has "option" option then record (loc ++ [ name ]) option (under name)
              else walk (loc ++ [ name ]) option
                (concatMap (d: map (value: d // { inherit value; }) (pushDown d.value)) (under name)))
            options;
        in
        {
          _type = "tree";
          records = mapAttrs (_: one: if has "tree" one then one.records else one) inner;
          config = checked // mapAttrs (_: one: if has "tree" one then one.config else one.value) inner;
        };
      tree = walk prefix declared defined;
      records = tree.records;
      evaluated = { inherit (tree) config; options = records; };
    in
    evaluated;

  # All options below, those of submodules too, as a list for documentation.
  documented = options:
    concatMap
      (name:
        let option = options.${name}; in
        if has "option" option then
          lib.optionals (option.visible or true && !(option.internal or false))
            ([ option ] ++ documented (option.type.options option.loc))
        else documented option)
      (attrNames options);

  renamed = { from, to, withPriority ? true }: { options, config, ... }: {
    options = lib.setAttrByPath from (mkOption {
      visible = false;
      description = "Alias of ${showOption to}.";
      apply = _: get to config;
    });
    config = mkMerge [
      (lib.optionalAttrs (options ? warnings) {
        warnings = lib.optional (get from options).isDefined
          "The option `${showOption from}' has been renamed to `${showOption to}'.";
      })
      (mkIf (get from options).isDefined (lib.setAttrByPath to (mkMerge (get from options).definitions)))
    ];
  };
  mkOption = given: { _type = "option"; } // given;
in
{
  inherit evalModules types mkOption mkIf mkMerge mkOverride mkOrder showOption documented;
  mkOptionDefault = mkOverride 1500;
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;
  mkEnableOption = name: mkOption {
    type = types.bool;
    default = false;
    example = true;
    description = "Whether to enable ${name}.";
  };
  mkRenamedOptionModule = from: to: renamed { inherit from to; };
  mkRemovedOptionModule = path: advice: { options, ... }: {
    options = lib.setAttrByPath path (mkOption {
      visible = false;
      apply = _: throw "The option `${showOption path}' can no longer be used since it's been removed. ${advice}";
    });
    config.assertions = [
      {
        assertion = !(get path options).isDefined;
        message = "The option definition `${showOption path}' no longer has any effect; please remove it.\n${advice}";
      }
    ];
  };
}
