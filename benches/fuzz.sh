#!/usr/bin/env bash
# Fuzzes every parser of files that come from outside, one target after the other: benches/fuzz.sh [SECONDS] [TARGET...]
# SECONDS is the time for each target, 60 by default. An input that panics, takes longer than 20 s, or asks for more memory
# than any file may cost is a crash: it is kept in fuzz/artifacts, and the exit code is 1. What was learned stays in fuzz/corpus.
set -euo pipefail

cd "$(dirname "$0")/.."
seconds=${1:-60}
shift $(($# > 0))
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz is missing; install it with: cargo install cargo-fuzz --locked" >&2
    exit 2
fi

# With the address sanitizer every allocation counts, those of C libraries too; its flag is not stable yet.
export RUSTC_BOOTSTRAP=1
nice -n 10 cargo fuzz build -s address --target-dir fuzz/target
built=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release
targets=("$@")
(($#)) || mapfile -t targets < <(cargo fuzz list)

# Many targets write files; in memory that is ten times faster.
memory=/dev/shm
[[ -d $memory ]] || memory=${TMPDIR:-/tmp}
TMPDIR=$(mktemp -d "$memory/flashlm-fuzz.XXXXXX")
trap 'rm -rf "$TMPDIR"' EXIT
export TMPDIR ASAN_OPTIONS=quarantine_size_mb=16:detect_leaks=0

finds=0
printf '%-16s %10s %9s %9s %9s\n' target runs coverage 'peak MB' crashes
for target in "${targets[@]}"; do
    log=$TMPDIR/$target.log corpus=fuzz/corpus/$target kept=fuzz/artifacts/$target/ crashes=0
    mkdir -p "$corpus" "$kept"
    # A frame of zstd sets its window aside at once, up to 2 GB, and uses as much of it as it has text.
    asked=144
    [[ $target == text ]] && asked=2200
    nice -n 10 "$built/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=640 -malloc_limit_mb="$asked" \
        -print_final_stats=1 -artifact_prefix="$kept" "$corpus" >"$log" 2>&1 || crashes=1
    # figure PATTERN: the number in the last line that has it.
    figure() { sed -nE "s/$1.*/\1/p" "$log" | tail -n 1; }
    printf '%-16s %10s %9s %9s %9s\n' "$target" "$(figure '^stat::number_of_executed_units: *([0-9]+)')" \
        "$(figure '.* cov: ([0-9]+)')" "$(figure '^stat::peak_rss_mb: *([0-9]+)')" "$crashes"
    if ((crashes)); then
        finds=1
        tail -n 40 "$log" >&2
        echo "again: RUSTC_BOOTSTRAP=1 cargo fuzz run -s address $target $(figure '.*Test unit written to (.*)')" >&2
    fi
done
exit "$finds"
