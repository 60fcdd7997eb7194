#!/usr/bin/env bash
# `flashlm export c` on trained models of full size: tests/exports/c.sh [FLASHLM [PRESET...]]. Each preset is trained for a hundred small steps on one
# thread, and one program for all of them, as every compiler here builds it, writes 200 tokens greedily and 200 drawn ones, equal to `flashlm generate`.
# Some minutes. Compilers that are missing are skipped with a word (Debian: clang, gcc-multilib).
set -euo pipefail
cd "$(dirname "$0")/../.."
flashlm=$(realpath "${1:-target/release/flashlm}")
presets=("${@:2}")
[[ ${#presets[@]} -gt 0 ]] || presets=(v4-small hybrid-small portable-small portable-delta flash-tiny gdn-small v4-blockwise-small)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

steps=(--data synthetic:3000 --steps 100 --threads 1 --batch 4 --set train.seq_len=128 --set train.stages=[] --set train.warmup_steps=10)
for preset in "${presets[@]}"; do
    nice -n 10 "$flashlm" train --preset "$preset" "${steps[@]}" --save-dir "$work/$preset" >/dev/null 2>"$work/log" || { cat "$work/log"; exit 1; }
    "$flashlm" export c "$work/$preset" -o "$work/$preset-c" --weights separate >/dev/null
    for way in "-t 0" "--seed 1" "--seed 2" "-t 1.3 --top-p 1 --seed 3"; do
        "$flashlm" generate "$work/$preset" -p "One day" -n 200 $way >"$work/$preset$way" 2>/dev/null
    done
    echo "$preset: trained"
done

# same NAME COMPILER...
same() {
    local name=$1 texts=0 tokens=0 told
    shift
    if ! { echo 'int main(void) { return 0; }' >"$work/try.c" && "$@" "$work/try.c" -o "$work/try" && "$work/try"; } 2>/dev/null; then
        echo "$name: skipped, no such compiler here"
        return
    fi
    "$@" -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Werror "$work/${presets[0]}-c/story.c" -o "$work/story"
    for preset in "${presets[@]}"; do
        for way in "-t 0" "--seed 1" "--seed 2" "-t 1.3 --top-p 1 --seed 3"; do
            told=$("$work/story" -m "$work/$preset-c/story.bin" -p "One day" -n 200 $way 2>&1 >"$work/text") || { echo "$name, $preset $way: $told"; exit 1; }
            cmp "$work/text" "$work/$preset$way"
            texts=$((texts + 1)) tokens=$((tokens + ${told%% *}))
        done
    done
    echo "$name: $texts texts equal, $tokens tokens"
}

sanitize="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
same "gcc" gcc -O3
same "gcc, native" gcc -O3 -march=native
same "gcc, plain C" gcc -O2 -DSTORY_PLAIN
same "gcc, sanitizers" gcc $sanitize
same "gcc, 32-bit" gcc -m32 -msse2 -mfpmath=sse -O2
clang=$(command -v clang || command -v clang-19 || echo clang)
same "clang, native" "$clang" -O3 -march=native
same "clang, sanitizers" "$clang" $sanitize -march=native
