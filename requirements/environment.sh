#!/bin/sh
# Makes .venv hold what requirements/$1.txt says, and eventlane itself as an editable install.
# demo.txt is a part of dev.txt, with the same versions, so both share .venv: `demo` only adds,
# and does nothing after `dev`. When nothing has changed, this takes a few milliseconds.
set -eu
cd "$(dirname "$0")/.."

stamp_of() { { pwd; cat requirements/uv.txt "requirements/$1.txt" pyproject.toml; } | cksum; }
is_current() { [ "$(cat ".venv/.$1" 2>/dev/null)" = "$(stamp_of "$1")" ]; }
works() { [ -x .venv/bin/python ] && .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if works && { is_current "$1" || is_current dev; }; then exit 0; fi

find_python() {
    for name in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11 python; do
        path=$(command -v "$name") || continue
        if ! "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            found="$found, $path ($("$path" -V 2>&1 || true))"
        elif ! "$path" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            found="$found, $path ($("$path" -V 2>&1), but without venv)"
        else
            python=$path
            return
        fi
    done
    found=${found#, }
    echo "Expected: a Python of 3.11 or newer with its venv module." >&2
    echo "Got: ${found:-no Python at all}." >&2
    echo "What to do: on Debian and Ubuntu 'apt-get install python3-venv', elsewhere install a newer" >&2
    echo "Python; or name one that is not on PATH: make PYTHON=/path/to/python3 ..." >&2
    exit 1
}

if ! works || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    found=
    find_python
    "$python" -m venv --clear .venv
fi

echo "Setting up .venv ($1; the first time it takes about a minute) ..."
rm -f .venv/.demo .venv/.dev
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt

# uv does not read pip's configuration; whoever set an index for pip means it for this, too.
index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$index"; fi

uv() { .venv/bin/uv --quiet --no-config pip "$@"; }
export VIRTUAL_ENV="$PWD/.venv"
case $1 in
demo) uv install --no-deps --require-hashes -r requirements/demo.txt ;;
*) uv sync --require-hashes "requirements/$1.txt" ;;
esac
# Without build isolation: the build backend is the one that the lock holds.
uv install --no-deps --no-build-isolation --editable .
stamp_of "$1" >".venv/.$1"
