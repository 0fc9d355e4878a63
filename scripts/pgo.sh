#!/bin/sh
# Builds the program with a profile of itself under load: once instrumented, once with what that has
# shown. The outcome is target/pgo/countersign.
#
#   scripts/pgo.sh [--with-yardstick]
#
# With the yardstick, bare pingora (benches/bare_pingora.rs) is built in the same way beside it, for
# `make bench-compare`, so that nobody takes the profile's merit for ours.
#
# Needs llvm-profdata of the LLVM that rustc was built with, and what `make bench-compare` needs.
# Both builds are whole: a quarter of an hour each on two cores.
set -eu
cd "$(dirname "$0")/.."
work=$PWD/target/pgo
programs='--bin countersign'
proxies=countersign
case ${1:-} in
    '') ;;
    --with-yardstick)
        programs="$programs --example bare_pingora"
        proxies=bare,countersign
        ;;
    *)
        echo 'usage: scripts/pgo.sh [--with-yardstick]' >&2
        exit 2
        ;;
esac

say() {
    echo "pgo: $*" >&2
}

llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=''
for candidate in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" "llvm-profdata-$llvm" llvm-profdata; do
    if "$candidate" --version 2>/dev/null | grep -q "LLVM version $llvm\."; then
        profdata=$candidate
        break
    fi
done
if [ -z "$profdata" ]; then
    say "no llvm-profdata of LLVM $llvm, which this rustc writes profiles with; install Debian's llvm-$llvm"
    say 'or: rustup component add llvm-tools'
    exit 1
fi

# With a target named, the flags are for the program alone: build scripts and macros leave no
# profiles.
build() {
    # shellcheck disable=SC2086  # Several words.
    RUSTFLAGS=$1 CARGO_TARGET_DIR=$work/$2 \
        cargo build --locked --release --target "$host" $programs
}

say 'building the program that notes where it goes'
build "-Cprofile-generate=$work/raw" noting

say 'sending it requests'
rm -rf "$work/raw"
CARGO_TARGET_DIR=$work/noting/$host python3 benches/compare/compare.py --no-save --rounds 1 --seconds 3 \
    --proxies $proxies >&2
if [ -z "$(ls "$work/raw" 2>/dev/null)" ]; then
    say 'it left no profile: it did not end in good order'
    exit 1
fi
rm -f "$work"/*.profile
"$profdata" merge -o "$work/merged" "$work/raw"
# cargo builds anew when the flags change, and does not look into the files that they name.
profile=$work/$(sha256sum "$work/merged" | cut -c1-16).profile
mv "$work/merged" "$profile"

say 'building the program with that known'
# What was never reached has no profile, and is no mistake.
build "-Cprofile-use=$profile -Cllvm-args=-pgo-warn-missing-function=false" using
built=$work/using/$host/release
cp "$built/countersign" "$work/countersign"
if [ "$proxies" != countersign ]; then
    cp "$built/examples/bare_pingora" "$work/bare_pingora"
fi
say "done: $work/countersign"
