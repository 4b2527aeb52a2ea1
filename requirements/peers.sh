#!/bin/sh
# What `make bench ARGS="--peers"` needs beside .venv: two servers from Debian, which it starts and
# stops by itself, and .venv/peers for the other libraries. When all is there, it does nothing.
set -eu
cd "$(dirname "$0")/.."

servers="nats-server redis-server"
missing=
for name in $servers; do command -v "$name" >/dev/null || missing="$missing $name"; done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Expected on the PATH:$missing. On Debian and Ubuntu type" >&2
        echo "    sudo apt-get install -y --no-install-recommends$missing" >&2
        echo "and stop what that started: sudo systemctl disable --now$missing" >&2
        exit 1
    fi
    echo "Installing, once:$missing ..."
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of words
    if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
        echo "That did not work. The end of its log:" >&2
        tail -n 5 "$log" >&2
        exit 1
    fi
    rm -f "$log"
fi

stamp() { cksum <benchmarks/peers/requirements.txt; }
if [ "$(cat .venv/peers/.stamp 2>/dev/null)" = "$(stamp)" ] && .venv/peers/bin/python -c ""; then exit 0; fi

echo "Setting up .venv/peers ..."
rm -rf .venv/peers
# uv does not read pip's configuration; whoever set an index for pip means it for this, too.
index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$index"; fi
.venv/bin/uv --quiet --no-config venv --python .venv/bin/python .venv/peers
VIRTUAL_ENV="$PWD/.venv/peers" .venv/bin/uv --quiet --no-config pip sync benchmarks/peers/requirements.txt
stamp >.venv/peers/.stamp
