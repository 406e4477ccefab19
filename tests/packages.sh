#!/usr/bin/env bash
# Installs the system packages that building and testing need, where they are missing: a C and C++
# compiler (its linker serves Rust, the compiler itself the trainer's libtorch bindings), CMake, make
# and pkg-config, and Python with the venv module (trainer/setup.sh). On Debian and Ubuntu as root;
# elsewhere it names what is missing. Changes nothing where all is there. Tools without which a test
# is skipped aloud are asked for only where they can be installed at once.
set -euo pipefail

die() {
    echo "packages.sh: $*" >&2
    exit 1
}

packages=()
command -v cc >/dev/null && command -v c++ >/dev/null || packages+=(g++ libc6-dev)
# ensurepip is what Debian leaves out of python3.
"${PYTHON:-python3}" -c 'import venv, ensurepip' >/dev/null 2>&1 || packages+=(python3 python3-venv)
# The programs of others that the tests build against the installed library.
command -v cmake >/dev/null || packages+=(cmake)
command -v make >/dev/null || packages+=(make)
command -v pkg-config >/dev/null || packages+=(pkg-config)
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    command -v valgrind >/dev/null || packages+=(valgrind)
    command -v abidiff >/dev/null || packages+=(abigail-tools)
    # cargo-c, which .ci/run builds, needs OpenSSL's headers.
    [ -e /usr/include/openssl/ssl.h ] || packages+=(libssl-dev)
fi

if [ ${#packages[@]} -gt 0 ]; then
    command -v apt-get >/dev/null ||
        die "missing: C and C++ compilers (cc, c++), cmake, make, pkg-config, or Python 3 with venv"
    [ "$(id -u)" = 0 ] ||
        die "missing packages; install them with: sudo apt-get install ${packages[*]}"
    echo "packages.sh: installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

command -v cargo >/dev/null ||
    die "cargo is not installed (or not on the PATH): see https://rustup.rs"
