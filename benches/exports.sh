#!/usr/bin/env bash
# `flashlm export c` on other machines: 32-bit x86, big-endian s390x and NEON under QEMU, valgrind, clang. Texts must be equal. What is
# missing here is skipped with a word. Debian: gcc-multilib or gcc-12-s390x-linux-gnu libc6-dev-s390x-cross gcc-12-aarch64-linux-gnu
# libc6-dev-arm64-cross, qemu-user-static, valgrind, clang. benches/exports_speed.py measures.
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
