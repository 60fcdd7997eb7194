#!/bin/sh
# The same bits on 1, 2 and 4 ranks under a real MPI, and after a resume on another number of them. Usage: benches/ranks.sh PROGRAM, a
# flashlm built with --features mpi. Without mpirun it says so and checks nothing.
set -eu
program=$(readlink -f "${1:-target/release/flashlm}")
command -v mpirun > /dev/null || { echo "skipped: there is no mpirun here"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
train() {
    ranks=$1; shift
    mpirun --oversubscribe -n "$ranks" "$program" train --threads 1 "$@" > "out.$ranks" 2>&1 || { cat "out.$ranks"; exit 1; }
}
same() {
    for file in model.safetensors optimizer.safetensors; do
        cmp "$1/checkpoints/$3/$file" "$2/checkpoints/$3/$file"
    done
}
new="--preset flash-tiny -d synthetic:500 --steps 200 --batch 4 --precision f32 --set train.pass_rows=256 \
--set train.seq_len=256 --set train.checkpoint_every=100 --set train.keep=10"
for ranks in 1 2 4; do
    train $ranks $new -o "run-$ranks"
done
last=$(ls run-1/checkpoints | tail -1)
same run-1 run-2 "$last"
same run-1 run-4 "$last"
first=$(ls run-4/checkpoints | grep 100 | head -1)
for ranks in 1 2; do
    train $ranks --resume "run-4/checkpoints/$first"
    same run-1 run-4 "$last"
done
echo "1, 2 and 4 ranks, and 4 resumed on 1 and on 2: the same bits in $last"
