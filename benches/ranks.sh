#!/usr/bin/env bash
# The same bits under a real MPI as on one process and on ranks as threads: 200 updates of every case of crates/train/tests/ranks.rs on 1, 2
# and 4 ranks, and 4 resumed on 1 and on 2; parameters and optimizer are compared byte by byte. Then what ranks cost, in turns.
# Usage: benches/ranks.sh [PROGRAM], a flashlm built with --features mpi. `--small`: one case on 2 ranks, without figures; `--cost`: the
# figures alone.
set -euo pipefail
small= cost=
[[ ${1:-} == --small ]] && { small=1; shift; }
[[ ${1:-} == --cost ]] && { cost=1; shift; }
cd "$(dirname "$0")/.."
program=$(readlink -f "${1:-${CARGO_TARGET_DIR:-target}/release/flashlm}")
command -v mpirun > /dev/null || { echo "skipped: there is no mpirun here (Debian: openmpi-bin)"; [[ -z ${CI:-} ]]; exit; }
# Root, more ranks than processors, and containers that forbid reading another process.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_hwloc_base_binding_policy=none
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export FLASHLM_CACHE=$folder/cache

# train RANKS ARGUMENTS...
train() {
    local ranks=$1
    shift
    mpirun -n "$ranks" "$program" train --threads 1 "$@" > "$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
}
same() {
    local file
    for file in model.safetensors optimizer.safetensors; do
        cmp "$1/checkpoints/$3/$file" "$2/checkpoints/$3/$file"
    done
}

if [[ $small ]]; then
    new=(--preset flash-tiny -d synthetic:300 --precision f32 --set train.steps=40 --set train.batch=4 --set train.pass_rows=64
        --set train.seq_len=64 --set train.checkpoint_every=20 --set train.keep=9 --set train.eval_every=20 --set train.sample_every=0)
    "$program" train --threads 1 "${new[@]}" -o "$folder/alone" > "$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
    train 2 "${new[@]}" -o "$folder/two"
    same "$folder/alone" "$folder/two" step-00000040
    train 2 --resume "$folder/alone/checkpoints/step-00000020"
    same "$folder/alone" "$folder/two" step-00000040
    echo "one process and 2 ranks: the same bits after 40 updates, and resumed from 20"
    exit 0
fi

bits() {
    local began=$SECONDS last=step-00000200 cases=0 case ranks
    echo "== ranks as threads: 1, 2, 4 and 8, 200 updates"
    FLASHLM_RANKS=$folder cargo test --release --test ranks -- --ignored two_hundred > "$folder/out" 2>&1 ||
        { cat "$folder/out"; exit 1; }
    for case in "$folder"/*/; do
        [[ -e $case/1/settings.toml ]] || continue
        for ranks in 1 2 4; do
            train $ranks --config "$case/1/settings.toml" -o "$case/mpi-$ranks"
            same "$case/1" "$case/mpi-$ranks" "$last"
        done
        # In the folder of the 4 ranks.
        for ranks in 1 2; do
            train $ranks --resume "$case/mpi-4/checkpoints/step-00000100"
            same "$case/1" "$case/mpi-4" "$last"
        done
        cases=$((cases + 1))
        echo "$(basename "$case"): 1, 2, 4 ranks, 4 resumed on 1 and on 2: the bits of 1, 2, 4 and 8 threads"
    done
    [[ $cases -ge 5 ]] || { echo "only $cases cases were compared"; exit 1; }
    echo "== $((SECONDS - began)) s"
}
[[ $cost ]] || bits

echo "== tokens per second of v4-small, in turns: no MPI and 2 threads, mpirun -n 1 and 2 threads, mpirun -n 2 and 1 thread each"
text=(--preset v4-small -d synthetic:500 --set tokenizer.vocab=1024 --set train.batch=16 --set train.pass_rows=2048 --set train.steps=20
    --set train.log_every=20 --set train.eval_every=20 --set train.eval_tokens=2000 --set train.sample_every=0)
speed() {
    local name=$1
    shift
    rm -rf "$folder/run"
    "$@" "${text[@]}" -o "$folder/run" > "$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
    sed -nE 's/.*"kind":"train".*"tokens_per_second":([0-9.]+).*/\1/p' "$folder/run/metrics.jsonl" >> "$folder/$name.speeds"
}
for round in 1 2 3 4 5 6 7 8 9; do
    turns=(alone one two)
    # Whatever becomes slower or faster meanwhile does so for all three.
    ((round % 2)) || turns=(two one alone)
    for turn in "${turns[@]}"; do
        case $turn in
            alone) speed alone "$program" train --threads 2 ;;
            one) speed one mpirun -n 1 "$program" train --threads 2 ;;
            two) speed two mpirun -n 2 "$program" train --threads 1 ;;
        esac
    done
done
paste -d ' ' "$folder"/{alone,one,two}.speeds > "$folder/speeds"
# median 'EXPRESSION': of what it makes of a round's three speeds.
median() { awk "{ print $1 }" "$folder/speeds" | sort -g | sed -n 5p; }
printf 'medians of 9 rounds: %.0f, %.0f, %.0f tokens/s; one rank against none %.3f, two ranks of a thread against one of two %.3f\n' \
    "$(median '$1')" "$(median '$2')" "$(median '$3')" "$(median '$2 / $1')" "$(median '$3 / $1')"
