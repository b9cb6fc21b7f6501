# The Makefile does the rest: its .venv holds the versions that requirements/ locks.
{
  mkShell,
  jq,
  nix,
  nixfmt-tree,
  python3,
  runc,
  shellcheck,
  skopeo,
  umoci,
}:
mkShell {
  packages = [
    jq
    nix
    nixfmt-tree
    python3
    runc
    shellcheck
    skopeo
    umoci
  ];
}
