# What meets only when packages are put together in one image.
{ mk, ... }:
{
  # The same file from several packages. A lower meta.priority wins (5 when there is none), then the name that sorts first.
  conflictA = mk { pname = "conflict-a"; script = "echo A | bin tool"; };
  conflictB = mk { pname = "conflict-b"; script = "echo B | bin tool"; };
  conflictC = mk { pname = "conflict-c"; script = "echo C | bin tool"; meta.priority = 4; };
  conflictD = mk { pname = "conflict-d"; script = "echo D | bin tool"; };
  # A directory where the others have a file.
  conflictDirectory = mk { pname = "conflict-directory"; script = "mkdir -p $out/bin/tool; touch $out/bin/tool/inside"; };

  # Brings its own users: the image must not add root and nobody.
  ownPasswd = mk {
    pname = "own-passwd";
    script = ''
      mkdir -p $out/etc
      echo 'app:x:1000:1000:app:/:/bin/sh' > $out/etc/passwd; echo 'app:x:1000:' > $out/etc/group
    '';
  };
}
