#!/usr/bin/env bash
# Builds llama.cpp and llama_bench, once for each version and processor, and prints the path of llama_bench:
#
#   tests/peers/llama_cpp.sh
#
# The sources are those that PyPI's source package llama-cpp-python holds; cmake, ninja and gguf come from
# PyPI as well. All of it lies in $TEENY_PEERS, else in ~/.cache/teeny-peers (about 400 MB); removing that
# folder removes it. Needs Python 3.10 or newer with venv (PYTHON names another than python3), and a C and a
# C++ compiler (CC, CXX). The first run takes minutes; what is there already stays.
set -euo pipefail

version=0.3.36
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${TEENY_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/teeny-peers}"
python="${PYTHON:-python3}" compiler="${CXX:-c++}"
# What was built for this processor may not run on another one that has the same home.
processor="$( (grep -m 1 -E '^(flags|Features)' /proc/cpuinfo || uname -mp) 2>/dev/null | cksum | cut -d ' ' -f 1)"
source="$cache/llama.cpp-$version"
build="$cache/build-$version-$processor"
bench="$build/llama_bench"

die() {
    echo "llama_cpp.sh: $*" >&2
    exit 1
}

# step WHAT COMMAND...: runs the command; its output is shown only if it fails.
step() {
    local what="$1"
    shift
    echo "llama_cpp.sh: $what" >&2
    "$@" >"$cache/log.txt" 2>&1 || {
        tail -n 30 "$cache/log.txt" >&2
        die "$what has failed; all of its output is in $cache/log.txt"
    }
}

for program in "$python" "$compiler"; do
    command -v "$program" >/dev/null || die "no $program found (PYTHON and CXX name others)"
done
mkdir -p "$cache" || die "cannot make the folder $cache"

if ! "$cache/venv/bin/python" -c 'import cmake, gguf, ninja' 2>/dev/null; then
    step "making $cache/venv" "$python" -m venv --clear "$cache/venv"
    step "installing cmake, ninja and gguf" "$cache/venv/bin/python" -m pip install cmake ninja gguf
fi
export PATH="$cache/venv/bin:$PATH"

if [ ! -d "$source" ]; then
    work="$(mktemp -d "$cache/sources.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
    step "fetching the sources of llama-cpp-python $version" python -m pip download --no-deps \
        --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$version"
    step "unpacking them" tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work"
    [ -f "$work/llama_cpp_python-$version/vendor/llama.cpp/include/llama.h" ] ||
        die "llama-cpp-python $version holds no vendor/llama.cpp"
    mv "$work/llama_cpp_python-$version/vendor/llama.cpp" "$source"
fi

if [ ! -f "$build/built" ]; then
    off=()
    for part in COMMON TESTS TOOLS EXAMPLES SERVER APP UI MTMD; do
        off+=("-DLLAMA_BUILD_$part=OFF")
    done
    step "configuring llama.cpp" cmake --fresh -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF "${off[@]}"
    step "building llama.cpp (minutes)" nice -n 10 ninja -C "$build" -j "$(nproc)" llama
    touch "$build/built"
fi

if [ "$here/llama_bench.cpp" -nt "$bench" ]; then # or there is none
    step "building llama_bench" "$compiler" -std=c++17 -O2 -Wall -Wextra "$here/llama_bench.cpp" -o "$bench" \
        -I "$source/include" -I "$source/ggml/include" -L "$build/bin" -Wl,-rpath,"$build/bin" \
        -DPACKAGE_VERSION="\"$version\"" -lllama -lggml -lggml-base
fi
echo "$bench"
