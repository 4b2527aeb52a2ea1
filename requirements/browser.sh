#!/bin/sh
# Chromium for the tests that look at pages, where it may be installed. It never fails: a test that
# finds no browser skips on a laptop and fails where CI is set.
set -u

has_browser() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" >/dev/null; then return 0; fi
    done
    return 1
}

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi

missing=
if ! has_browser; then missing="chromium fonts-dejavu-core"; fi
# Playwright's driver is linked with it, and a minimal image lacks it.
if ! /sbin/ldconfig -p | grep -q libatomic.so.1; then missing="$missing libatomic1"; fi
if [ -z "$missing" ]; then exit 0; fi

echo "Installing for the page tests, once: $missing ..."
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    echo "That did not work; the page tests will say what they lack. The end of its log:"
    tail -n 5 "$log"
fi
rm -f "$log"
