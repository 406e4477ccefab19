#!/usr/bin/env bash
# Measures the CUDA backend beside PyTorch on a machine with an NVIDIA GPU, and tests it there:
#
#   tests/peers/gpu.sh [--dry-run] [--only measure|check] [--seconds N] [FOLDER]
#
# --only measure leaves out the sanitizer, --only check the measurements.
#
# FOLDER (target/gpu) holds what was built elsewhere: gpu_decode, which README.md describes, and test
# programs gpu_test*. Needed are bash, Python 3 with PyTorch (PYTHON names another than python3) and, for
# the sanitizer's part, compute-sanitizer. Results go to $OUT, else target/gpu-results: table.txt, log.txt
# and the files that table.py reads. The table of targets ends the output.
#
# Each stage has a limit of its own, and all of them end within --seconds (570); one that fails or is cut
# off does not keep the others. The exit code is 1 if a stage failed or was cut off.
#
# --dry-run tries everything out on a CPU: small models, few runs, stubs for programs that FOLDER lacks.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit

usage() {
    echo "usage: tests/peers/gpu.sh [--dry-run] [--only measure|check] [--seconds N] [FOLDER]" >&2
    exit 2
}

dry_run='' only='' seconds=570 programs=target/gpu
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry_run=1 ;;
        --only)
            [ "${2-}" = measure ] || [ "${2-}" = check ] || usage
            only="$2"
            shift
            ;;
        --seconds)
            [ $# -ge 2 ] || usage
            seconds="$2"
            shift
            ;;
        -*) usage ;;
        *) programs="$1" ;;
    esac
    shift
done
python="${PYTHON:-python3}"
results="${OUT:-target/gpu-results}"
device=cuda:0
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$results"
rm -f "$results"/{stages.tsv,log.txt,table.txt,agreement.json} "$results"/decode-*.json
: >"$results/stages.tsv"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# script FILE: makes a program of the lines on standard input.
script() {
    { echo '#!/bin/sh'; cat; } >"$1"
    chmod +x "$1"
}

export small='' # or a flag of model.py
decode=(--steps 256 --rounds 4 --runs 5) batch=256 prefill=1024
if [ -n "$dry_run" ]; then
    device=cpu small=--small decode=(--steps 32 --rounds 2 --runs 2) batch=8 prefill=64
    real="$programs" programs="$work/programs"
    mkdir "$programs"
    if [ -x "$real/gpu_decode" ]; then
        cp "$real/gpu_decode" "$programs"
    else
        echo "exec '$python' tests/peers/gpu_decode_stub.py \"\$@\"" | script "$programs/gpu_decode"
    fi
    script "$programs/gpu_test_stub" <<'END'
echo 'test stub::works ... ok'
echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'
END
    # In front of a real one: that would find no GPU.
    script "$programs/compute-sanitizer" <<'END'
while [ "${1#--}" != "$1" ]; do shift 2; done
"$@" && echo '========= ERROR SUMMARY: 0 errors'
END
    PATH="$programs:$PATH"
    # The stub is this script's work three times over, and PyTorch's compiler wants its time.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi

failed=0

# stage NAME LIMIT COMMAND...: runs the command, at most LIMIT seconds and at most what is left of all. Its
# last line that begins with "=========" or "test result" becomes the stage's note.
stage() {
    local name="$1" limit="$2" left=$((seconds - 10 - SECONDS)) start="$SECONDS" code note
    shift 2
    [ "$limit" -le "$left" ] || limit="$left"
    printf '\n== %s (after %d s)\n' "$name" "$SECONDS"
    if [ "$limit" -lt 5 ]; then
        echo "no time left"
        printf '%s\t-\t0\tno time left\n' "$name" >>"$results/stages.tsv"
        failed=1
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$work/stage.log" 2>&1
    code=$?
    printf "\n== %s\n" "$name" >>"$results/log.txt"
    # A program that prints without end must not fill the log.
    tail -c 1000000 "$work/stage.log" >>"$results/log.txt"
    tail -n 40 "$work/stage.log"
    note="$(grep -aE '^(=========.*SUMMARY|test result)' "$work/stage.log" | tail -n 1 | cut -c 1-90)"
    printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - start))" "$note" >>"$results/stages.tsv"
    [ "$code" = 0 ] || failed=1
}

skip() {
    printf '\n== %s: %s\n' "$1" "$2"
    printf '%s\t-\t0\t%s\n' "$1" "$2" >>"$results/stages.tsv"
}

machine() {
    uname -srm
    grep -m 1 'model name' /proc/cpuinfo
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit \
        --format=csv || true
    "$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "PyTorch", torch.__version__)'
}

models() {
    local preset
    for preset in 'default f32' 'nanogpt f32' 'gpt2 bf16'; do
        # shellcheck disable=SC2086 # two words, and a flag or none
        "$python" tests/peers/model.py write $preset "$work/${preset% *}.safetensors" $small || return
    done
}

# What timeout runs is a program of its own.
export -f machine models
export python work
export TMPDIR="$work"

stage "Machine" 30 bash -c machine

tests=()
for program in "$programs"/gpu_test*; do
    [ -x "$program" ] && tests+=("$program")
done
[ ${#tests[@]} -gt 0 ] || skip "GPU tests" "no $programs/gpu_test*"
for program in "${tests[@]}"; do
    stage "${program##*/}" 60 "$program" --test-threads=1
done

teeny=(--teeny "$programs/gpu_decode")
peer() {
    local model="$1" limit="$2"
    shift 2
    stage "Decode: $model" "$limit" "$python" tests/peers/decode.py "$work/$model.safetensors" \
        --device "$device" --json "$results/decode-$model.json" "${teeny[@]}" "${decode[@]}" "$@"
}
if [ "$only" != check ]; then
    stage "Models" 60 bash -c models
    peer default 150 --dtype f32 --batch "$batch"
    peer nanogpt 120 --dtype f32
    peer gpt2 220 --dtype bf16 --prefill "$prefill"
    stage "Logits" 90 "$python" tests/peers/agreement.py \
        "$work"/{default,nanogpt,gpt2}.safetensors data/shakespeare.safetensors \
        --timed "$results"/decode-{default,nanogpt,gpt2}.json \
        --device "$device" --text README.md --json "$results/agreement.json" "${teeny[@]}"
fi

if [ "$only" = measure ]; then
    skip "Sanitizer" "left out"
elif command -v compute-sanitizer >/dev/null; then
    # The quickest first: each gets what the others have left.
    for tool in memcheck synccheck initcheck racecheck; do
        for program in "${tests[@]}"; do
            stage "$tool, ${program##*/}" 120 compute-sanitizer --tool "$tool" --error-exitcode 86 \
                "$program" --test-threads=1
        done
    done
else
    skip "Sanitizer" "no compute-sanitizer on the PATH"
fi

printf '\n== Results in %s (after %d s)\n' "$results" "$SECONDS"
"$python" tests/peers/table.py "$results" ${dry_run:+--dry-run} 2>&1 | tee "$results/table.txt"
exit "$failed"
