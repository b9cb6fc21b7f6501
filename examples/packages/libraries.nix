# A chain nine deep, with diamonds:
# libunistring <- libidn2 <- glibc <- zlib <- openssl <- krb5 <- libssh2 <- nghttp2 <- curl
{ lib, mk, pkgs, ... }:
with pkgs; {
  libunistring = mk { pname = "libunistring"; version = "1.1"; script = "lib unistring $out"; };
  libidn2 = mk { pname = "libidn2"; version = "2.3.7"; script = "lib idn2 $out ${libunistring}"; };
  glibc = mk { # refers to itself too
    pname = "glibc"; version = "2.39";
    script = "lib c $out ${libidn2} $out";
    meta.license = lib.licenses.lgpl2Plus;
  };

  zlib = mk {
    pname = "zlib"; version = "1.3.1";
    outputs = [ "out" "dev" ];
    script = ''
      lib z $out ${glibc}
      mkdir -p $dev/include; echo "/* $out */" > $dev/include/zlib.h
    '';
    meta.license = lib.licenses.zlib;
  };

  openssl = mk { # its first output is not the one that holds the library, as in nixpkgs
    pname = "openssl"; version = "3.0.14";
    outputs = [ "bin" "dev" "out" ];
    script = ''
      lib ssl $out ${zlib} ${glibc}
      mkdir -p $bin/bin $dev/include
      printf '#!%s\necho OpenSSL 3.0.14\n' ${bash}/bin/sh > $bin/bin/openssl; chmod 755 $bin/bin/openssl
      echo "needs $out" > $bin/needs
      echo "/* $out $bin ${zlib.dev} */" > $dev/include/ssl.h
    '';
    meta = { description = "A library that would encrypt"; license = lib.licenses.asl20; mainProgram = "openssl"; outputsToInstall = [ "bin" ]; };
  };

  krb5 = mk {
    pname = "libkrb5"; version = "1.21";
    outputs = [ "out" "lib" "dev" ];
    script = ''
      lib krb5 $lib ${openssl.out} ${glibc}
      mkdir -p $out $dev; echo "$lib" > $out/needs; echo "$lib $out" > $dev/needs
    '';
    meta.license = lib.licenses.mit;
  };

  libssh2 = mk { pname = "libssh2"; version = "1.11"; script = "lib ssh2 $out ${krb5.lib} ${openssl.out} ${zlib}"; };
  nghttp2 = mk { pname = "nghttp2"; version = "1.61"; script = "lib nghttp2 $out ${libssh2}"; meta.license = lib.licenses.mit; };

  curl = mk { # looks for its whole chain at run time: an image that lacks a path shows here
    pname = "curl"; version = "8.8.0";
    script = ''
      bin curl <<EOF
      #!${bash}/bin/sh
      for f in ${nghttp2}/lib/libnghttp2.so ${libssh2}/lib/libssh2.so ${krb5.lib}/lib/libkrb5.so ${openssl.out}/lib/libssl.so ${zlib}/lib/libz.so ${glibc}/lib/libc.so ${libidn2}/lib/libidn2.so; do
        [ -e "\$f" ] || { echo "missing \$f" >&2; exit 127; }
      done
      echo 'curl 8.8.0 (tiny)'
      EOF
    '';
    meta = { description = "Checks that all libraries below it are there"; license = lib.licenses.curl; mainProgram = "curl"; };
  };

  perl = mk {
    pname = "perl"; version = "5.38.2";
    script = "lib perl $out ${glibc} ${coreutils}";
    meta.license = with lib.licenses; [ artistic1 gpl1Plus ]; # a list, as many packages of nixpkgs have
  };

  git = mk {
    pname = "git"; version = "2.45";
    script = ''
      bin git <<EOF
      #!${bash}/bin/sh
      exec ${curl}/bin/curl # ${coreutils} ${perl}
      EOF
    '';
    meta = { description = "Runs curl, and refers to coreutils and perl"; license = lib.licenses.gpl2Only; mainProgram = "git"; };
  };
}
