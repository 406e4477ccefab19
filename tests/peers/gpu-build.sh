#!/usr/bin/env bash
# Builds what gpu.sh runs on a machine with a GPU: gpu_decode and gpu_test, which need nothing there but the
# driver. Arguments: the folder for them, target/gpu if there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder="${1:-target/gpu}"
mkdir -p "$folder"
# built NAME ARGUMENTS...: the path of the program NAME that `cargo ARGUMENTS` makes.
built() {
    local name="$1"
    shift
    cargo "$@" --release -p teeny-cuda-tests --message-format=json |
        "${PYTHON:-python3}" -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$name"
}
cp "$(built gpu_decode build --bin gpu_decode)" "$folder/gpu_decode"
cp "$(built gpu_test test --test gpu_test --no-run)" "$folder/gpu_test"
strip "$folder/gpu_decode" "$folder/gpu_test" 2>/dev/null || true
ls -l "$folder"
