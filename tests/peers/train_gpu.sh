#!/usr/bin/env bash
# Trains on a machine with an NVIDIA GPU: the trainer's tests, the targets of time and of loss, and an exact
# resume. See train_gpu.py, which it calls.
#
#   tests/peers/train_gpu_build.sh        # anywhere with Rust: target/gpu/teeny-train and train_test_*
#   tests/peers/train_gpu.sh              # there, with target/gpu/, the corpus, and torch 2.11.0
#   PYTHON=trainer/.venv/bin/python tests/peers/train_gpu.sh --dry-run    # tries it out on a CPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec "${PYTHON:-python3}" tests/peers/train_gpu.py "$@"
