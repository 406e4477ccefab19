#!/usr/bin/env bash
# Installs libtorch 2.11.0 for the trainer: a virtual environment in trainer/.venv with the wheel
# torch==2.11.0, and the link trainer/.venv/libtorch that .cargo/config.toml names. Where the wheel
# brings CUDA, also the headers of CUDA that it leaves out, which trainer/shim is compiled with.
#
# The version is pinned because tch 0.24 binds exactly libtorch 2.11.0. Needs Python 3.10 or newer
# with the venv module, and about 5 GB of disk on Linux, where the wheel brings CUDA with it.
# May be run again at any time: what is there already stays. PYTHON=... chooses the interpreter.
set -euo pipefail

torch_version=2.11.0
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="$here/.venv"
python="${PYTHON:-python3}"

die() {
    echo "setup.sh: $*" >&2
    exit 1
}

# The folder of the installed torch of that version; fails when there is none. Looks at files
# only, because importing torch takes seconds.
find_torch() {
    local folder
    for folder in "$venv"/lib/python3.*/site-packages/torch; do
        [ -e "$folder/lib/libtorch_cpu.so" ] || [ -e "$folder/lib/libtorch_cpu.dylib" ] || continue
        [[ "$(cat "$folder/../torch-$torch_version"*.dist-info/METADATA 2>/dev/null)" ]] || continue
        echo "$folder"
        return 0
    done
    return 1
}

has_numpy() {
    ls -d "$venv"/lib/python3.*/site-packages/numpy >/dev/null 2>&1
}

# Whether there is nothing to compile with CUDA, or all that it takes. The runtime's own headers
# come with torch; those that they include are in wheels of their own: crt, and nv of CCCL.
has_cuda_headers() {
    local torch
    torch="$(find_torch)" && [ -e "$torch/lib/libtorch_cuda.so" ] || return 0
    [ -e "$torch/../nvidia/cu13/include/crt/host_defines.h" ] &&
        [ -e "$torch/../nvidia/cu13/include/nv/target" ]
}

if ! { find_torch >/dev/null && has_numpy; }; then
    command -v "$python" >/dev/null ||
        die "no $python found: install Python 3.10 or newer, or name one with PYTHON=..."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$("$python" --version) is too old: Python 3.10 or newer is needed (PYTHON=... names another)"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python lacks the venv module (on Debian and Ubuntu: apt-get install python3-venv)"
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "setup.sh: making $venv" >&2
        "$python" -m venv --clear "$venv" || die "cannot make a virtual environment in $venv"
    fi
    echo "setup.sh: installing torch $torch_version (large: minutes)" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        "torch==$torch_version" numpy ||
        die "pip could not install torch==$torch_version; its message is above"
fi

if ! has_cuda_headers; then
    echo "setup.sh: installing the rest of CUDA's headers" >&2
    # Of the version of nvidia-cuda-runtime that torch asks for.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        "nvidia-cuda-crt==13.0.*" "nvidia-cuda-cccl==13.0.*" ||
        die "pip could not install the headers of CUDA; its message is above"
    has_cuda_headers || die "the headers of CUDA are not where they were expected, below $venv"
fi

torch="$(find_torch)" || die "torch $torch_version is not where it was expected, below $venv"
# Relative, so that the repository can be moved.
ln -sfn "${torch#"$venv"/}" "$venv/libtorch"
echo "setup.sh: libtorch $torch_version is in ${torch#"$PWD"/}" >&2
