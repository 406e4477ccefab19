#!/usr/bin/env bash
# Runs the runtime's unit tests as 64-bit ARM programs on an x86-64 machine, under QEMU: once as a CPU
# with all that QEMU knows (dot products of bytes among it), once as one with plain NEON.
#
#     tests/aarch64.sh [CARGO TEST ARGUMENTS]     # default: -p teeny-runtime --no-default-features --lib
#     CPUS="max neoverse-n1" tests/aarch64.sh     # other CPUs (-cpu help lists them)
#
# Compiler, linker, C library and QEMU are packages of Debian 12, a download of 230 MB. They are
# unpacked in target/aarch64/debian, 1.1 GB, and used from there: the system's packages stay as they
# are, and nobody need be root. Where they cannot be had, it says SKIPPED and succeeds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
    echo "aarch64.sh: $*" >&2
    exit 1
}
skip() {
    echo "aarch64.sh: SKIPPED: $*"
    exit 0
}

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/aarch64
debian=$CARGO_TARGET_DIR/debian
if [ ! -e "$debian" ]; then
    [ "$(uname -sm)" = "Linux x86_64" ] || skip "needs x86-64 Linux"
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || skip "needs apt-get"
    echo "aarch64.sh: downloading packages"
    new=$CARGO_TARGET_DIR/new
    rm -rf "$new"
    mkdir -p "$new"/{lists,archives}/partial "$new/debian"
    # apt with lists and archives of its own, which knows ARM's packages too.
    get() {
        apt-get -qq -o Dir::State::Lists="$new/lists" -o Dir::Cache="$new" -o Debug::NoLocking=1 \
            -o APT::Architectures::=arm64 -o APT::Sandbox::User= -o Acquire::Languages=none "$@" \
            >"$new/log" 2>&1
    }
    # What the packages depend on is downloaded where the system lacks it. Of ARM's packages, the
    # standard library alone. A source of packages that fails may be one that is not needed.
    get update || true
    if ! { get install --download-only --reinstall -y --no-install-recommends \
        rustc-web libstd-rust-web-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static &&
        (cd "$new/archives" && get download libstd-rust-web-dev:arm64); }; then
        reason=$(tail -n 1 "$new/log")
        rm -rf "$new"
        skip "cannot download packages: $reason"
    fi
    for package in "$new"/archives/*.deb; do
        dpkg-deb -x "$package" "$new/debian" || die "cannot unpack $package"
    done
    mv "$new/debian" "$debian"
    rm -rf "$new"
fi

# The compiler's and the linker's own libraries.
export LD_LIBRARY_PATH=$debian/usr/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export RUSTC=$debian/usr/bin/rustc
# Programs linked statically need no loader and no library of ARM's at a place that QEMU must be told.
export RUSTFLAGS="-C target-feature=+crt-static"
# An emulated CPU is slow, and every case is tried on a real one too.
export PROPTEST_CASES=${PROPTEST_CASES:-48}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$debian/usr/bin/aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$debian/usr/bin/qemu-aarch64-static
[ $# -gt 0 ] || set -- -p teeny-runtime --no-default-features --lib
for QEMU_CPU in ${CPUS:-max cortex-a53}; do
    export QEMU_CPU
    echo "== aarch64, CPU $QEMU_CPU"
    cargo test --release --target aarch64-unknown-linux-gnu "$@"
done
