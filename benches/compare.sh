#!/usr/bin/env bash
# Training throughput, FlashLM and PyTorch in turns on the same cores (A B A B A B), and the ratio of the medians.
#
#   benches/compare.sh [PRESET [BATCH [SEQ [SECONDS [MODE]]]]]      default: v4-small 32 256 15 eager
#
# MODE is PyTorch's: eager, bf16 or compile. Environment: FLASHLM (the binary), PYTHON, THREADS, ROUNDS.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
preset=${1:-v4-small} batch=${2:-32} seq=${3:-256} seconds=${4:-15} mode=${5:-eager}
flashlm=${FLASHLM:-$root/target/release/flashlm}
python=${PYTHON:-python3}
threads=${THREADS:-$(nproc)}
rounds=${ROUNDS:-3}

if [[ ! -x $flashlm ]]; then
    echo "$flashlm is not there: run 'cargo build --release', or set FLASHLM" >&2
    exit 1
fi
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "$python has no torch: see benches/README.md, or set PYTHON" >&2
    exit 1
fi

# Both see the same cores, so neither needs to be told how many threads to start.
pin=()
if command -v taskset >/dev/null; then
    pin=(taskset -c "0-$((threads - 1))")
fi
# PyTorch at its best also needs an allocator that keeps what it freed.
tuned=()
if [[ $mode == compile ]]; then
    tuned=(MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456)
fi

size=(--preset "$preset" --batch "$batch" --seq "$seq" --seconds "$seconds" --json)
ours=() theirs=()
for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    ours+=("$("${pin[@]}" "$flashlm" bench train "${size[@]}")")
    theirs+=("$(env "${tuned[@]}" "${pin[@]}" "$python" "$root/benches/pytorch/bench.py" "${size[@]}" \
        --threads "$threads" --mode "$mode")")
done

printf '%s\n' "${ours[@]}" "${theirs[@]}" | "$python" -c '
import json, statistics, sys

rounds, setting = int(sys.argv[1]), sys.argv[2]
runs, text, decoder = [], sys.stdin.read().lstrip(), json.JSONDecoder()
while text:
    run, end = decoder.raw_decode(text)
    runs.append(run)
    text = text[end:].lstrip()
print(setting)
medians = []
for name, part in (("flashlm", runs[:rounds]), ("pytorch", runs[rounds:])):
    speeds = [run["tokens_per_second"] for run in part]
    medians.append(statistics.median(speeds))
    listed = " ".join(f"{speed:.0f}" for speed in speeds)
    memory = max(run.get("peak_rss_mb", float("nan")) for run in part)
    print(f"{name}  median {medians[-1]:.0f} tokens/s  ({listed})  peak {memory:.0f} MB")
print(f"ratio {medians[0] / medians[1]:.2f}")
' "$rounds" "$preset batch $batch seq $seq threads $threads, PyTorch $mode"
