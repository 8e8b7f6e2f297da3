# shellcheck shell=bash
# Makes .venv in the current folder and keeps it current. Sourced by demo.sh and
# test.sh, which call `ensure_venv EXTRAS` under `set -euo pipefail`.
# Plain bash 3.2 and POSIX tools, as on macOS.

SUPPORTED="3.10 3.11 3.12 3.13"
# TensorFlow has been out longest for the middle ones, so they come first.
CANDIDATES="python3.12 python3.11 python3.13 python3.10 python3 python"
NEEDED_GB=5 # the packages, pip's downloads of them and what the demo writes

# What the user has outside .venv must not leak into it.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1

fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 1
}

# Prints the version of an interpreter as 3.11; nothing if it does not really run, as
# a pyenv shim of a version that is not selected.
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null ||
    true
}

is_supported() {
  [[ " $SUPPORTED " == *" $1 "* ]]
}

# Prints the first interpreter that can make a virtual environment.
find_python() {
  local candidate version seen="" without_venv=""
  for candidate in ${PYTHON:+"$PYTHON"} $CANDIDATES; do
    command -v "$candidate" >/dev/null || continue
    version=$(version_of "$candidate")
    if ! is_supported "$version"; then
      seen+="${seen:+, }$candidate (${version:-does not run})"
    elif "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1 </dev/null; then
      printf '%s\n' "$candidate"
      return
    elif [[ -z "$without_venv" ]]; then
      without_venv="Python $version ($candidate) lacks the modules venv or ensurepip;"
      without_venv+=" install them, e.g. apt install python$version-venv"
    fi
  done
  [[ -z "$without_venv" ]] || fail "$without_venv"
  fail "needs Python 3.10, 3.11, 3.12 or 3.13; found ${seen:-no Python};\
 install one, e.g. apt install python3 python3-venv, or set PYTHON to its path"
}

# Refuses a folder without the permission or the room for the environment.
check_folder() {
  local free_kib
  [[ -w . ]] || fail "no permission to write in $PWD; use a copy in a folder of yours"
  free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [[ "$free_kib" =~ ^[0-9]+$ ]] || return 0 # some network disks do not say
  ((free_kib >= NEEDED_GB * 1000000)) ||
    fail "needs about $NEEDED_GB GB of disk space in $PWD; found $((free_kib / 1000)) MB;\
 free some or use a copy on another disk"
}

make_venv() {
  local python output
  python=$(find_python)
  check_folder
  printf 'Making .venv with %s (%s)\n' "$python" "$(version_of "$python")"
  output=$("$python" -m venv --clear .venv 2>&1) ||
    fail "$python -m venv failed: ${output##*$'\n'}"
}

# Environments that uv makes have no pip, so it is added.
has_pip() {
  .venv/bin/python -m pip --version || .venv/bin/python -m ensurepip
} &>/dev/null

# Prints a name that changes with whatever an installation depends on: the folder too,
# since the editable package points there.
stamp_path() {
  printf '.venv/installed-%s\n' \
    "$({ pwd && cat setup.py constraints.txt; } | cksum | tr -s ' \t' '-')"
}

# Whether the stamp lists every extra. "base" is the package without any.
is_installed() {
  local extra stamp=$1 extras=$2
  [[ -e "$stamp" && ! -e .venv/installing ]] || return 1
  for extra in base ${extras//,/ }; do
    grep -qx "$extra" "$stamp" || return 1
  done
}

install_package() {
  local stamp=$1 extras=$2 reason
  printf 'Installing the packages into .venv; the first time takes some minutes\n'
  touch .venv/installing
  if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --constraint constraints.txt --editable ".${extras:+[$extras]}" \
    >.venv/pip.log 2>&1 </dev/null; then
    rm -f .venv/installing # pip itself took back what it had begun
    reason=$(sed -n 's/^ *ERROR: //p' .venv/pip.log | tail -n 1)
    fail "pip could not install the packages: ${reason:-it gave no reason};\
 is a package index reachable? Its log is .venv/pip.log"
  fi
  [[ -e "$stamp" ]] || rm -f .venv/installed-*
  tr ',' '\n' <<<"base,$extras" >>"$stamp"
  rm -f .venv/installing
}

# Makes .venv unless it is there, and installs the package with the given extras
# ("dev" or "hub,dev" or "") unless they are already in it.
ensure_venv() {
  local extras=$1 version stamp
  version=$(version_of .venv/bin/python)
  stamp=$(stamp_path)
  [[ -z "$version" ]] || is_supported "$version" ||
    fail ".venv holds Python $version, not 3.10 to 3.13; remove it and run this again"
  if [[ -n "$version" ]] && is_installed "$stamp" "$extras"; then
    return
  fi
  # An installation that was killed leaves packages without some of their files.
  if [[ -z "$version" || -e .venv/installing ]] || ! has_pip; then
    make_venv
  fi
  install_package "$stamp" "$extras"
}
