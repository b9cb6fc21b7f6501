# Store paths of every awkward shape and size.
{ mk, pkgs, ... }:
with pkgs; {
  # ---- the store path itself is not a directory
  singleFile = mk { pname = "single-file.txt"; script = "echo just a file > $out"; };
  executableFile = mk { pname = "run.sh"; script = "printf '#!%s\\necho ran\\n' ${bash}/bin/sh > $out; chmod 755 $out"; };
  symlinkPath = mk { pname = "hello-link"; script = "ln -s ${hello}/bin/hello $out"; };
  dirLink = mk { pname = "directory-link"; script = "ln -s ${hello}/bin $out"; };
  rootLink = mk { pname = "root-link"; script = "ln -s ${hello} $out"; };
  escapeLink = mk { pname = "escape-link"; script = "ln -s /etc $out"; }; # hostile: leads out of the store

  # ---- what is in it is odd
  danglingLink = mk { pname = "dangling"; script = "mkdir $out; ln -s /etc/nowhere $out/abs; ln -s ../nope $out/rel"; };
  emptyDir = mk { pname = "empty-dir"; script = "mkdir $out"; };
  weirdNames = mk {
    pname = "weird+names_1.0?x=y";
    script = ''
      mkdir -p "$out/with space" "$out/ünïcode" "$out/.hidden"
      touch "$out/Case" "$out/case" "$out/with space/%25?#" "$out/new
      line"
      chmod 755 $out/Case; ln $out/Case $out/hardlink || true
    '';
  };
  longPath = mk {
    pname = "long-path";
    script = "d=$out; for i in $(seq 1 12); do d=$d/directory-number-$i-with-a-long-name; done; mkdir -p $d; touch $d/leaf";
  };

  # ---- big, or many
  bigBlob = mk { # 20 MiB that do not compress and are NOT the same in the next build
    pname = "big-blob";
    script = "mkdir $out; dd if=/dev/urandom of=$out/blob bs=65536 count=\${blobChunks:-320} 2>/dev/null";
    env.nonce = "1";
  };
  compressible = mk { pname = "compressible"; script = "mkdir $out; dd if=/dev/zero of=$out/zeros bs=1048576 count=64 2>/dev/null"; };
  manyFiles = mk {
    pname = "many-files";
    script = "for d in $(seq 1 20); do mkdir -p $out/d$d; for f in $(seq 1 100); do echo $d $f > $out/d$d/f$f; done; done";
  };
  wide = # a closure of 121 paths: more than an image may have layers
    let
      leaf = i: mk { pname = "leaf-${toString i}"; script = "mkdir $out; echo ${toString i} > $out/id"; };
    in
    mk { pname = "wide"; script = "mkdir $out; echo ${toString (builtins.genList leaf 120)} > $out/needs"; };
}
