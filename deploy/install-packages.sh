#!/usr/bin/env bash
# Installs the Debian packages of deploy/apt-packages.txt that are missing.
#   deploy/install-packages.sh [SECTION...]     sections: build test runtime; default: all
# Does nothing, without root, where all are there. Otherwise needs root or sudo.
set -euo pipefail

list="$(dirname "${BASH_SOURCE[0]}")/apt-packages.txt"

# Prints the packages of the sections given, all sections without any.
wanted() {
  local section='' package unless command
  while read -r package unless command _; do
    if [[ $package == \[*\] ]]; then
      section=${package//[\[\]]/}
    elif [[ -n $package ]] && { (($# == 0)) || [[ " $* " == *" $section "* ]]; }; then
      if [[ $unless == unless ]] && command -v "$command" >/dev/null; then continue; fi
      printf '%s\n' "$package"
    fi
  done < <(sed 's/#.*//' "$list")
}

missing() {
  local installed
  installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true)
  comm -23 <(printf '%s\n' "$@" | sort -u) \
    <(awk '$2 == "installed" {print $1}' <<<"$installed" | sort -u)
}

die() {
  printf 'install-packages: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

apt() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 \
    -o Acquire::Retries=3 "$@"
}

install_all() {
  apt install -y --no-install-recommends "$@"
}

# Mirrors fail now and then, and a list that is half old makes the installation fail.
update() {
  local attempt
  for attempt in 1 2 3; do
    if apt update; then return 0; fi
    echo "install-packages: apt-get update failed (attempt $attempt of 3)" >&2
    sleep "$((attempt * 3))"
  done
  return 1
}

for section in "$@"; do
  grep -qxF "[$section]" "$list" || die "no section [$section] in $list"
done
command -v dpkg-query >/dev/null ||
  die "this is not Debian; install by hand what $list names, then go on"
mapfile -t packages < <(wanted "$@")
((${#packages[@]} > 0)) || exit 0
mapfile -t absent < <(missing "${packages[@]}")
((${#absent[@]} > 0)) || exit 0

echo "install-packages: missing: ${absent[*]}"
if ((EUID != 0)) && ! command -v sudo >/dev/null; then
  die "needs root or sudo. As root: apt-get install --no-install-recommends ${absent[*]}"
fi
# The lists of available packages at hand may do; if not, they are fetched (once more).
if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || ! install_all "${absent[@]}"; then
  update || die "apt-get update failed three times; is the network there?"
  install_all "${absent[@]}" || die "could not install: ${absent[*]}"
fi
