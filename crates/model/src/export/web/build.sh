#!/usr/bin/env bash
# Makes story.wasm and story-relaxed.wasm beside this script from engine.c; with --check it makes them elsewhere, and fails where
# they are not the same bytes. Needs clang 19 and lld 19 (Debian: clang-19, lld-19); another version makes other bytes.
set -euo pipefail
cd "$(dirname "$0")"
to=.
if [[ ${1-} == --check ]]; then
    if ! command -v clang-19 >/dev/null || ! command -v wasm-ld-19 >/dev/null; then
        echo "skipped: the modules are not made again, for there is no clang-19 and lld-19 here"
        exit 0
    fi
    to=$(mktemp -d)
    trap 'rm -r "$to"' EXIT
fi
make() {
    clang-19 --target=wasm32 -std=c11 -O3 -ffp-contract=off -Wall -Wextra -Wno-unused-function -nostdlib -isystem include \
        -fno-ident "${@:2}" -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=65536 engine.c -o "$to/$1"
}
make story.wasm -msimd128
make story-relaxed.wasm -msimd128 -mrelaxed-simd
if [[ $to != . ]]; then
    cmp story.wasm "$to/story.wasm"
    cmp story-relaxed.wasm "$to/story-relaxed.wasm"
    echo "story.wasm and story-relaxed.wasm are what engine.c makes"
fi
