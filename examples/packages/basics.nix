# What images are made of day by day. It all runs: busybox is static, the rest are scripts and links to it.
{ lib, mk, pkgs, boot, ... }:
with pkgs; {
  busybox = mk {
    pname = "busybox"; version = "1.35.0";
    script = ''
      mkdir -p $out/bin; cp ${boot}/busybox $out/bin/busybox
      for a in $($bb --list); do [ $a = busybox ] || ln -s busybox $out/bin/$a; done
    '';
    meta = { description = "Tiny versions of common UNIX utilities in a single executable"; license = lib.licenses.gpl2Only; mainProgram = "busybox"; };
  };

  bash = mk {
    pname = "bash"; version = "5.2";
    script = ''
      bin bash <<EOF
      #!${busybox}/bin/busybox sh
      exec ${busybox}/bin/sh "\$@"
      EOF
      ln -s ${busybox}/bin/sh $out/bin/sh
    '';
    meta = { description = "A shell that answers to the name of bash"; license = lib.licenses.gpl3Plus; mainProgram = "bash"; };
  };

  bashInteractive = mk {
    pname = "bash-interactive"; version = "5.2";
    script = "mkdir -p $out/bin; ln -s ${bash}/bin/bash $out/bin/bash; ln -s ${bash}/bin/sh $out/bin/sh";
    meta = { description = "The shell for people"; license = lib.licenses.gpl3Plus; mainProgram = "bash"; };
  };

  coreutils = mk {
    pname = "coreutils"; version = "9.5";
    script = ''
      mkdir -p $out/bin
      for a in cat chmod chown cp cut date dd df du echo env expr false head id ln ls mkdir mktemp mv printf pwd \
          rm rmdir seq sha256sum sleep sort stat tail tee test touch tr true uname uniq wc whoami; do
        ln -s ${busybox}/bin/busybox $out/bin/$a
      done
    '';
    meta = { description = "Basic file, shell and text utilities"; license = lib.licenses.gpl3Plus; };
  };

  moreutils = mk {
    pname = "moreutils"; version = "0.69";
    script = ''
      # Reads all of its input before it opens the file, so that the file may be at the pipe's other end.
      bin sponge <<EOF
      #!${bash}/bin/sh
      t=\$(${busybox}/bin/mktemp) && ${busybox}/bin/cat > "\$t" && ${busybox}/bin/cat "\$t" > "\''${1:-/dev/stdout}"
      s=\$?; ${busybox}/bin/rm -f "\$t"; exit \$s
      EOF
      # Runs a command and shows its output only when it fails.
      bin chronic <<EOF
      #!${bash}/bin/sh
      o=\$("\$@" 2>&1) && exit
      s=\$?; echo "\$o" >&2; exit \$s
      EOF
    '';
    meta = { description = "More tools in the spirit of the UNIX ones"; license = lib.licenses.gpl2Plus; };
  };

  nano = mk {
    pname = "nano"; version = "8.0";
    script = ''
      bin nano <<EOF
      #!${bash}/bin/sh
      exec ${busybox}/bin/vi "\$@"
      EOF
    '';
    meta = { description = "An editor (vi at heart)"; license = lib.licenses.gpl3Plus; mainProgram = "nano"; };
  };

  which = mk {
    pname = "which"; version = "2.21";
    script = "mkdir -p $out/bin; ln -s ${busybox}/bin/busybox $out/bin/which";
    meta = { description = "Shows the full path of commands"; license = lib.licenses.gpl3Plus; mainProgram = "which"; };
  };

  cacert = mk {
    pname = "nss-cacert"; version = "3.101";
    script = ''
      mkdir -p $out/etc/ssl/certs
      printf '%s\n' '-----BEGIN CERTIFICATE-----' 'dGlueQ==' '-----END CERTIFICATE-----' > $out/etc/ssl/certs/ca-bundle.crt
    '';
    meta = { description = "A bundle where certificates would be"; license = lib.licenses.mpl20; };
  };

  iana-etc = mk {
    pname = "iana-etc"; version = "20240318";
    script = "mkdir -p $out/etc; echo 'https 443/tcp' > $out/etc/services; echo 'tcp 6 TCP' > $out/etc/protocols";
    meta = { description = "Services and protocols"; license = lib.licenses.mit; };
  };

  hello = mk {
    pname = "hello"; version = "2.12.1";
    script = ''
      bin hello <<EOF
      #!${bash}/bin/sh
      echo 'Hello, world!'
      EOF
    '';
    meta = { description = "Greets"; license = lib.licenses.gpl3Plus; mainProgram = "hello"; };
  };
}
