# shellcheck shell=bash
# What the scripts beside this file share; they source it.

# shellcheck disable=SC2034 # the scripts use it
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Debian keeps daemons where an ordinary user's PATH does not look.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'set-up: %s\n' "$*" >&2; }

die() {
  say "$@"
  exit 1
}

have() { command -v "$1" >/dev/null; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_install PACKAGE…: installs Debian's packages without what they merely recommend, and starts no service.
# A subshell, so that the trap undoes what it did whatever happens.
apt_install() (
  [ "$(id -u)" = 0 ] || have sudo || die "missing, and there is no sudo; as root, run: apt-get install $*"
  say "installing from Debian's packages: $*"
  # Packages ask this program whether their services may start. One that the administrator put there stays.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f "$policy"' EXIT
    # shellcheck disable=SC2016 # the inner shell's $1
    as_root sh -c 'printf "#!/bin/sh\nexit 101\n" >"$1" && chmod 755 "$1"' sh "$policy"
  fi
  # One unreachable source of several need not matter: the installation tells.
  as_root apt-get -qq update || say "apt-get update failed, going on with what is known"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@" </dev/null >&2
)
