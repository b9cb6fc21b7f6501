# What takes its time, and what fails: while it is built, or before that.
{ mk, pkgs, boot, buildSystem, ... }:
with pkgs; {
  slow = mk { pname = "slow"; script = "sleep 3; mkdir $out"; };

  # ---- fails while it is built
  failsToBuild = mk { pname = "fails-to-build"; script = "echo 'configure: error: no acceptable C compiler' >&2; exit 77"; };
  failsNoOutput = mk { pname = "fails-no-output"; script = "true"; }; # succeeds, but makes no $out
  failsVerbose = mk { pname = "fails-verbose"; script = "seq 1 500; exit 1"; };
  dependsOnFailure = mk { pname = "depends-on-failure"; script = "echo ${failsToBuild} > $out"; };
  badHash = derivation { # fixed output, other content
    name = "bad-hash"; system = buildSystem;
    builder = "${boot}/busybox"; args = [ "sh" "-c" "echo x > $out" ];
    outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "0000000000000000000000000000000000000000000000000000";
  };
  needsArmBuilder = derivation { # no machine of this kind at hand
    name = "needs-arm-builder"; system = "aarch64-linux";
    builder = "${boot}/busybox"; args = [ "sh" "-c" "echo > $out" ];
  };

  # ---- fails to evaluate
  throws = throw "throws has been removed, use hello"; # how nixpkgs keeps old names
  python2Packages = throw "python2Packages is gone"; # the same for a set
  aborts = abort "abort cannot be caught by tryEval";
  assertFails = assert false; hello;
  missingDep = mk { pname = "missing-dep"; script = "echo ${pkgs.noSuchPackage}"; };
  infinite = let x = x; in x;
}
