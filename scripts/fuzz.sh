#!/bin/sh
# Runs every fuzz target for so many seconds (default 60). The stable toolchain suffices: what
# cargo-fuzz asks of a nightly compiler are LLVM's passes, which are there by their own names.
#
#     scripts/fuzz.sh [SECONDS [TARGET…]]
#
# What it finds stays in fuzz/corpus, what fails in fuzz/artifacts; a finding's file belongs into
# fuzz/seeds, where the ordinary tests try it ever after.
set -eu
cd "$(dirname "$0")/../fuzz"

seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- path fields echo config http1

# What is fuzzed are the versions that are shipped; cargo adds the fuzzer's own.
cp ../Cargo.lock Cargo.lock
host=$(rustc -vV | sed -n 's/^host: //p')
llvm="-Cllvm-args=-sanitizer-coverage"
# Only --target keeps the flags away from build scripts.
RUSTFLAGS="-Cpasses=sancov-module $llvm-level=4 $llvm-inline-8bit-counters $llvm-pc-table $llvm-trace-compares --cfg fuzzing" \
    cargo build --release --target "$host" --bins

for target in "$@"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    dictionary=
    [ ! -f "seeds/$target.dict" ] || dictionary="-dict=seeds/$target.dict"
    echo "== $target, $seconds s"
    "target/$host/release/$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 \
        -artifact_prefix="artifacts/$target/" -print_final_stats=1 -verbosity=0 $dictionary \
        "corpus/$target" "seeds/$target"
done
