#!/usr/bin/env bash
# Builds what train_gpu.sh runs on a machine with a GPU: teeny-train and the trainer's tests, which need
# there the driver and the Python package torch 2.11.0. Arguments: the folder for them, target/gpu if there
# is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder="${1:-target/gpu}"
mkdir -p "$folder"
rm -f "$folder"/train_test_*
cargo build --release -p teeny-trainer --bin teeny-train
cargo test --release -p teeny-trainer --lib --tests --no-run --message-format=json |
    "${PYTHON:-python3}" -c '
import json, pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1])
for line in sys.stdin:
    message = json.loads(line)
    program = message.get("executable")
    if program and message["profile"]["test"]:
        shutil.copy(program, folder / ("train_test_" + message["target"]["name"]))
    elif program and message["target"]["name"] == "teeny-train":
        shutil.copy(program, folder)
        # Where tests look for it.
        (folder / "teeny-train.path").write_text(program)' "$folder"
strip "$folder"/teeny-train "$folder"/train_test_* 2>/dev/null || true
ls -l "$folder"
