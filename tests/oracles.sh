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

# Names and versions of packages that are not installed as asked for.
missing() {
    "$venv/bin/python" - tests/oracles.txt <<'PYTHON'
import importlib.metadata
import sys

for line in open(sys.argv[1], encoding="ascii"):
    name, _, version = line.partition("#")[0].strip().partition("==")
    try:
        found = importlib.metadata.version(name) if name else version
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found != version:
        print(f"{name}=={version}")
PYTHON
}

packages="$(missing)"
[ -n "$packages" ] || exit 0
echo "oracles.sh: installing" $packages >&2
# shellcheck disable=SC2086 # one word for each package
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check $packages || {
    echo "oracles.sh: pip could not install them; its message is above. Tests that need them are skipped" >&2
    exit 0
}
