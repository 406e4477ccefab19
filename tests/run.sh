#!/usr/bin/env bash
# Installs what is needed and runs all tests:
#
#   tests/run.sh [COPY]
#
# COPY is a local copy of tiny Shakespeare for data/fetch.sh, which otherwise downloads it.
# The first run installs libtorch (large) and builds everything: a quarter of an hour on two cores and a
# fast connection. Each step may be run by itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -gt 1 ]; then
    echo "usage: tests/run.sh [COPY]" >&2
    exit 2
fi
if [ $# = 1 ]; then
    # The path is relative to where the caller stands, not to the root of the repository.
    case "$1" in
        /*) ;;
        *) set -- "$OLDPWD/$1" ;;
    esac
fi

heading() {
    printf '\n== %s (after %d s)\n' "$1" "$SECONDS"
}

heading "System packages"
tests/packages.sh
heading "Corpus"
data/fetch.sh "$@"
heading "libtorch"
trainer/setup.sh
heading "Libraries to compare with"
tests/oracles.sh
heading "Tests"
# The last command, so that the test runner's own summary ends the output.
cargo test --workspace --release
