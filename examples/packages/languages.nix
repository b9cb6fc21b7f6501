# Sets within the set, and attribute names that are no plain identifiers.
{ lib, mk, pkgs, ... }:
with pkgs; {
  python3 = mk {
    pname = "python3"; version = "3.11.9";
    script = ''
      bin python3 <<EOF
      #!${bash}/bin/sh
      echo Python 3.11.9 # ${zlib} ${openssl.out}
      EOF
    '';
    meta = { description = "Says its version"; license = lib.licenses.psfl; mainProgram = "python3"; };
    passthru.withPackages = choose: mk {
      pname = "python3-env"; version = "3.11.9";
      script = ''
        mkdir -p $out/bin $out/lib; ln -s ${python3}/bin/python3 $out/bin/python3
        for p in ${toString (choose python3Packages)}; do cp -r $p/lib/. $out/lib/; chmod -R u+w $out/lib; done
      '';
    };
  };

  python3Packages = lib.recurseIntoAttrs {
    certifi = mk { pname = "python3.11-certifi"; script = "mkdir -p $out/lib; echo ${cacert} > $out/lib/certifi.py"; };
    urllib3 = mk { pname = "python3.11-urllib3"; script = "mkdir -p $out/lib; echo ${python3} > $out/lib/urllib3.py"; };
    requests = mk {
      pname = "python3.11-requests";
      script = "mkdir -p $out/lib; echo ${python3Packages.urllib3} ${python3Packages.certifi} > $out/lib/requests.py";
    };
  };

  # An attribute name that needs quotes.
  nodePackages."@scope/tool" = mk { pname = "_at_scope_slash_tool"; script = "mkdir -p $out/bin; touch $out/bin/tool"; };

  # An identifier cannot begin with a digit: people ask for 7zz.
  _7zz = mk {
    pname = "7zz"; version = "24.07";
    script = ''
      bin 7zz <<EOF
      #!${bash}/bin/sh
      echo 7-Zip 24.07
      EOF
    '';
    meta = { description = "Says its version"; mainProgram = "7zz"; };
  };
}
