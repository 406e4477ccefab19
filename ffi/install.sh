#!/usr/bin/env bash
# Builds libteeny and installs it for C and C++ programs, with cargo and nothing else:
#
#   ffi/install.sh [--prefix DIR] [--libdir DIR] [--destdir DIR]
#
#   --prefix   where to install; default /usr/local
#   --libdir   folder of the libraries below the prefix; default lib
#   --destdir  put in front of all paths, for packages; default none
#
# `cargo cinstall` (cargo-c) installs the same tree. The tree may be moved afterwards.
set -euo pipefail

die() {
    echo "install.sh: $*" >&2
    exit 1
}

prefix=/usr/local
libdir=lib
destdir=
while [ $# -gt 0 ]; do
    case "$1" in
        --prefix | --libdir | --destdir)
            [ $# -gt 1 ] || die "$1: found nothing after it, expected a folder"
            declare "${1#--}=$2"
            shift 2
            ;;
        --prefix=* | --libdir=* | --destdir=*)
            name="${1%%=*}"
            declare "${name#--}=${1#*=}"
            shift
            ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        *) die "found $1, expected --prefix, --libdir or --destdir" ;;
    esac
done
[ -n "$prefix" ] || die "--prefix: found nothing, expected a folder"
case "$libdir" in
    "" | /* | *..*) die "--libdir: found '$libdir', expected a folder below the prefix, such as lib64" ;;
esac
case "$prefix" in
    /*) ;;
    *) prefix="$PWD/$prefix" ;;
esac
[ "$(uname -s)" = Linux ] || die "found $(uname -s), expected Linux: use cargo cinstall (cargo-c)"
command -v cargo >/dev/null || die "cargo is not installed (or not on the PATH): see https://rustup.rs"

cd "$(dirname "${BASH_SOURCE[0]}")"

# value SECTION KEY: of Cargo.toml here, or of the workspace's.
value() {
    awk -v section="[$2]" -v key="$3" '
        /^\[/ { here = $0 == section }
        here && $1 == key && $2 == "=" { gsub(/"/, "", $3); print $3; exit }' "$1"
}
version="$(value ../Cargo.toml workspace.package version)"
abi="$(value Cargo.toml package.metadata.capi.library version)"
[ -n "$version" ] && [ -n "$abi" ] || die "no version in ../Cargo.toml or no library version in Cargo.toml"

# Printed by the compiler when it makes the static library: what that needs of the system.
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
cargo build --release --locked --package teeny-ffi
cargo rustc --release --locked --package teeny-ffi --lib --crate-type staticlib -- \
    --print native-static-libs 2>&1 | tee "$log" >&2
private="$(sed -n 's/^note: native-static-libs: //p' "$log" | tail -1)"
[ -n "$private" ] || die "found no native-static-libs in what rustc said, expected what libteeny.a needs"
target="$(cargo metadata --format-version 1 --no-deps --offline |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/release"

# Everything is there before anything is written.
headers=(include/teeny.h include/teeny.hpp)
modules=(cmake/teenyConfig.cmake cmake/teenyConfigVersion.cmake cmake/teenyFiles.cmake)
for file in "$target/libteeny.so" "$target/libteeny.a" "${headers[@]}" "${modules[@]}" teeny.pc.in; do
    [ -f "$file" ] || die "$file: found nothing, expected a file of libteeny"
done

root="$destdir$prefix"
lib="$root/$libdir"
mkdir -p "$lib/pkgconfig" "$root/include" "$root/share/cmake/teeny"
# Each file beside its place first: a program that is using the old library keeps it.
put() {
    local mode="$1" from="$2" to="$3"
    install -m "$mode" "$from" "$to.new"
    mv -f "$to.new" "$to"
}
put 755 "$target/libteeny.so" "$lib/libteeny.so.$abi"
if command -v strip >/dev/null; then
    strip --strip-unneeded "$lib/libteeny.so.$abi"
fi
ln -sf "libteeny.so.$abi" "$lib/libteeny.so.${abi%%.*}"
ln -sf "libteeny.so.$abi" "$lib/libteeny.so"
put 644 "$target/libteeny.a" "$lib/libteeny.a"
for file in "${headers[@]}"; do
    put 644 "$file" "$root/$file"
done
for file in "${modules[@]}"; do
    put 644 "$file" "$root/share/cmake/teeny/${file##*/}"
done
# From lib/pkgconfig up to the prefix.
up="$(printf '%s' "$libdir/pkgconfig" | sed 's:/\{1,\}$::; s:[^/]\{1,\}:..:g')"
sed -e "s|@UP@|$up|; s|@LIBDIR@|$libdir|; s|@VERSION@|$version|; s|@PRIVATE@|$private|" \
    teeny.pc.in >"$lib/pkgconfig/teeny.pc.new"
mv -f "$lib/pkgconfig/teeny.pc.new" "$lib/pkgconfig/teeny.pc"

echo "installed teeny $version in $root"
