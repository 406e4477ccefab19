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

# targets cuda|others: arguments that name the test programs of the CUDA backend, or all the others.
targets() {
    cargo metadata --no-deps --format-version 1 | trainer/.venv/bin/python -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    if (package["name"] == "teeny-cuda-tests") == (sys.argv[1] == "cuda"):
        for target in package["targets"]:
            if "test" in target["kind"]:
                print("--test", target["name"])
' "$1"
}

# Each on a line of its own, so that a failure ends the script.
cuda="$(targets cuda)"
others="$(targets others)"

heading "Building the tests"
cargo test --workspace --release --no-run
# An emulated GPU is one for the whole program, so that its tests run one after the other: the rest of the
# tests has the other cores meanwhile.
heading "Tests"
log="$(mktemp)"
# shellcheck disable=SC2086 # names of targets have no spaces
cargo test --workspace --release --no-fail-fast $cuda >"$log" 2>&1 &
emulated=$!
trap 'kill "$emulated" 2>/dev/null || true; rm -f "$log"' EXIT
failed=0
# shellcheck disable=SC2086
cargo test --workspace --release --no-fail-fast --lib --bins $others || failed=1
wait "$emulated" || failed=1
cargo test --workspace --release --no-fail-fast --doc || failed=1
heading "Tests of the CUDA backend"
cat "$log"
exit "$failed"
