#!/usr/bin/env bash
# Installs the libraries that tests compare with (tests/oracles.txt) into trainer/.venv, which
# trainer/setup.sh makes. Does nothing where they are installed, or where there is no such folder: the
# tests that want them then say that they were skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=trainer/.venv
if [ ! -x "$venv/bin/python" ]; then
    echo "oracles.sh: no $venv (trainer/setup.sh makes it): nothing is installed" >&2
    exit 0
fi

# missing [alone]: names and versions of packages that are not installed as asked for, of those that are
# to come alone or of the others.
missing() {
    "$venv/bin/python" - tests/oracles.txt "$@" <<'PYTHON'
import importlib.metadata
import sys

for line in open(sys.argv[1], encoding="ascii"):
    package, _, comment = line.partition("#")
    name, _, version = package.strip().partition("==")
    if comment.strip().startswith("alone") != (sys.argv[2:] == ["alone"]):
        continue
    try:
        found = importlib.metadata.version(name) if name else version
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found != version:
        print(f"{name}=={version}")
PYTHON
}

# install PACKAGES [OPTION]: each word of PACKAGES is one.
install() {
    [ -n "$1" ] || return 0
    echo "oracles.sh: installing" $1 >&2
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${2:-} $1 ||
        echo "oracles.sh: pip could not install them; its message is above. Tests that need them are skipped" >&2
}

install "$(missing)"
install "$(missing alone)" --no-deps
