# shellcheck shell=bash
# Creates .venv in the current folder and keeps it up to date. demo.sh and test.sh source
# this file and call `ensure_venv EXTRAS` under `set -euo pipefail`.
# Uses only bash 3.2 and POSIX tools, as on macOS.

SUPPORTED="3.10 3.11 3.12 3.13"
# TensorFlow has supported the middle versions longest, so they come first.
CANDIDATES="python3.12 python3.11 python3.13 python3.10 python3 python"
NEEDED_GB=5 # packages, pip's downloads and the demo's output

# Keeps the user's other packages out of .venv.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1

fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 1
}

# Prints the version of an interpreter, such as 3.11; nothing if it does not run, like a
# pyenv shim of an unselected version.
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null ||
    true
}

is_supported() {
  [[ " $SUPPORTED " == *" $1 "* ]]
}

# Prints the first interpreter that can create a virtual environment.
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

# Requires write permission and disk space for the environment.
check_folder() {
  local free_kib
  [[ -w . ]] || fail "no permission to write in $PWD; use a copy in a folder of yours"
  free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [[ "$free_kib" =~ ^[0-9]+$ ]] || return 0 # some network disks do not report it
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

# Adds pip to environments without it, such as uv's.
has_pip() {
  .venv/bin/python -m pip --version || .venv/bin/python -m ensurepip
} &>/dev/null

# Prints a file name that changes with the inputs of an installation, including the folder,
# because the editable package points there.
stamp_path() {
  printf '.venv/installed-%s\n' \
    "$({ pwd && cat setup.py constraints.txt; } | cksum | tr -s ' \t' '-')"
}

# Succeeds if the stamp lists every extra. "base" is the package without extras.
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
    rm -f .venv/installing # pip has rolled back
    reason=$(sed -n 's/^ *ERROR: //p' .venv/pip.log | tail -n 1)
    fail "pip could not install the packages: ${reason:-it gave no reason};\
 is a package index reachable? Its log is .venv/pip.log"
  fi
  [[ -e "$stamp" ]] || rm -f .venv/installed-*
  tr ',' '\n' <<<"base,$extras" >>"$stamp"
  rm -f .venv/installing
}

# Creates .venv if missing, and installs the package with the given extras ("dev",
# "hub,dev" or "") unless they are installed.
ensure_venv() {
  local extras=$1 version stamp
  version=$(version_of .venv/bin/python)
  stamp=$(stamp_path)
  [[ -z "$version" ]] || is_supported "$version" ||
    fail ".venv holds Python $version, not 3.10 to 3.13; remove it and run this again"
  if [[ -n "$version" ]] && is_installed "$stamp" "$extras"; then
    return
  fi
  # A killed installation leaves incomplete packages.
  if [[ -z "$version" || -e .venv/installing ]] || ! has_pip; then
    make_venv
  fi
  install_package "$stamp" "$extras"
}
