#!/usr/bin/env bash
# `flashlm export c` by every compiler and machine at hand: tests/exports/c.sh [FLASHLM [PRESET...]]. The golden models, and presets trained for a
# hundred small steps; one program for all of them writes 200 tokens greedily and three times 200 drawn ones, equal to `flashlm generate`. Minutes.
# What is missing here is skipped with a word. Debian: clang gcc-multilib valgrind qemu-user, and for big-endian and NEON
# gcc-s390x-linux-gnu libc6-dev-s390x-cross gcc-aarch64-linux-gnu libc6-dev-arm64-cross. benches/exports_speed.py measures.
set -euo pipefail
cd "$(dirname "$0")/../.."
flashlm=$(realpath "${1:-target/release/flashlm}")
presets=("${@:2}")
[[ ${#presets[@]} -gt 0 ]] || presets=(v4-small hybrid-small portable-small portable-delta flash-tiny gdn-small v4-blockwise-small)
models=(conv delta hybrid "${presets[@]}")
ways=("-t 0" "--seed 1" "--seed 2" "-t 1.3 --top-p 1 --seed 3")
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

steps=(--data synthetic:3000 --steps 100 --threads 1 --batch 4 --set train.seq_len=128 --set train.stages=[] --set train.warmup_steps=10)
for model in "${models[@]}"; do
    from=tests/golden/$model.safetensors
    if [[ ! -e $from ]]; then
        from=$work/$model
        "$flashlm" train --preset "$model" "${steps[@]}" --save-dir "$from" >/dev/null 2>"$work/log" || { cat "$work/log"; exit 1; }
        echo "$model: trained"
    fi
    "$flashlm" export c "$from" -o "$work/$model-c" --weights separate >/dev/null
    for way in "${ways[@]}"; do
        "$flashlm" generate "$from" -p "One day" -n 200 $way >"$work/$model$way" 2>/dev/null
    done
done

"$flashlm" export c tests/golden/hybrid.safetensors -o "$work/inside.c" >/dev/null

# same NAME RUNNER COMPILER...
same() {
    local name=$1 runner=$2 texts=0 tokens=0 told
    shift 2
    if ! { echo 'int main(void) { return 0; }' >"$work/try.c" && "$@" "$work/try.c" -o "$work/try" && $runner "$work/try"; } 2>/dev/null; then
        echo "$name: skipped, no such compiler or emulator here"
        return
    fi
    "$@" -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Werror "$work/conv-c/story.c" -o "$work/story"
    for model in "${models[@]}"; do
        for way in "${ways[@]}"; do
            told=$($runner "$work/story" -m "$work/$model-c/story.bin" -p "One day" -n 200 $way 2>&1 >"$work/text") || { echo "$name, $model $way: $told"; exit 1; }
            cmp "$work/text" "$work/$model$way"
            texts=$((texts + 1)) tokens=$((tokens + ${told%% *}))
        done
    done
    "$@" -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Werror "$work/inside.c" -o "$work/story"
    $runner "$work/story" -p "One day" -n 200 --seed 1 2>/dev/null | cmp - "$work/hybrid--seed 1"
    echo "$name: $texts texts equal, $tokens tokens"
}

clang=$(command -v clang || command -v clang-19 || echo clang)
sanitize="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
same "gcc" "" gcc -O3
same "gcc, native" "" gcc -O3 -march=native
same "gcc, AVX2" "" gcc -O3 -mavx2
same "gcc, plain C" "" gcc -O2 -DSTORY_PLAIN
same "gcc, sanitizers" "" gcc $sanitize
same "gcc, 32-bit" "" gcc -m32 -msse2 -mfpmath=sse -O2
same "clang, native" "" "$clang" -O3 -march=native
same "clang, sanitizers" "" "$clang" $sanitize -march=native
same "s390x, big-endian" qemu-s390x s390x-linux-gnu-gcc -static -O3 -fexcess-precision=fast -ffp-contract=off
same "aarch64, NEON" qemu-aarch64 aarch64-linux-gnu-gcc -static -O3 -march=armv8.2-a+dotprod
same "valgrind" "valgrind -q --error-exitcode=9" gcc -O2
