#!/usr/bin/env bash
# `flashlm export c` on other machines: 32-bit x86, big-endian s390x and NEON under QEMU, valgrind, clang; then its speed against `flashlm generate`, in
# turns, on one thread. Texts must be equal. What is missing here is skipped with a word. Debian: gcc-multilib or gcc-12-s390x-linux-gnu
# libc6-dev-s390x-cross gcc-12-aarch64-linux-gnu libc6-dev-arm64-cross, qemu-user-static, valgrind, clang.
set -euo pipefail
cd "$(dirname "$0")/.."
flashlm=${FLASHLM:-target/release/flashlm}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

# same NAME RUNNER COMPILER...: golden models, four ways of choosing each.
same() {
    local name=$1 runner=$2 n=0
    shift 2
    if ! { echo 'int main(void) { return 0; }' >"$work/try.c" && "$@" "$work/try.c" -o "$work/try" && $runner "$work/try"; } 2>/dev/null; then
        echo "$name: skipped, no such compiler or emulator here"
        return
    fi
    for model in conv delta hybrid; do
        "$flashlm" export c tests/golden/$model.safetensors -o "$work/story.c" --force >/dev/null
        "$@" -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Werror "$work/story.c" -o "$work/story"
        for way in "-t 0" "--seed 1" "-t 1 --top-p 1 --seed 2" "-t 1.4 --top-k 30 --min-p 0.01 --seed 3"; do
            $runner "$work/story" -p "One day" -n 200 $way >"$work/a" 2>/dev/null
            "$flashlm" generate tests/golden/$model.safetensors -p "One day" -n 200 $way >"$work/b" 2>/dev/null
            cmp "$work/a" "$work/b"
            n=$((n + 1))
        done
    done
    echo "$name: $n texts equal"
}

same "gcc" "" gcc -O3
same "gcc, plain C" "" gcc -O3 -DSTORY_PLAIN
same "gcc, native" "" gcc -O3 -march=native
same "gcc, AVX2" "" gcc -O3 -mavx2
same "clang, native" "" clang -O3 -march=native
same "32-bit x86" "" gcc -m32 -msse2 -mfpmath=sse -O3
same "s390x, big-endian" qemu-s390x-static s390x-linux-gnu-gcc-12 -static -O3 -fexcess-precision=fast -ffp-contract=off
same "aarch64, NEON" qemu-aarch64-static aarch64-linux-gnu-gcc-12 -static -O3 -march=armv8.2-a+dotprod
same "valgrind" "valgrind -q --error-exitcode=9" gcc -O1

# Speed: the best of five turns, tokens per second as each says of itself.
model=${1:-builtin}
"$flashlm" export c "$model" -o "$work/story.c" --force >/dev/null
ways=("native:-march=native" "AVX2:-mavx2" "SSE2:" "plain C:-DSTORY_PLAIN")
for i in "${!ways[@]}"; do
    gcc -std=c11 -O3 ${ways[i]#*:} "$work/story.c" -o "$work/story$i"
done
declare -A best
for turn in 1 2 3 4 5; do
    speed() { sed -nE 's|.*, ([0-9,]+) tokens/s.*|\1|p' | tr -d ,; }
    for i in "${!ways[@]}"; do
        told=$("$work/story$i" -p "Once upon a time" -n 2000 -t 1.5 --seed $turn 2>&1 >/dev/null | speed)
        ((told > ${best[$i]:-0})) && best[$i]=$told
    done
    for isa in "" avx2 scalar; do
        told=$(env ${isa:+FLASHLM_ISA=$isa} "$flashlm" generate "$model" -p "Once upon a time" -n 2000 -t 1.5 --seed $turn 2>&1 >/dev/null | speed)
        ((told > ${best[rust$isa]:-0})) && best[rust$isa]=$told
    done
done
echo "tokens per second of $model: generate ${best[rust]}, on AVX2 ${best[rustavx2]}, on scalar ${best[rustscalar]}"
for i in "${!ways[@]}"; do
    echo "  C, ${ways[i]%%:*}: ${best[$i]}"
done
