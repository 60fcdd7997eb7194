#!/bin/bash
# Four machines, one rank on each, all of its processors: sbatch docs/cluster/slurm.sh book.txt runs/book
# The job is asked to end five minutes before its time is up: flashlm saves its step, and `flashlm train --resume` goes on.
#SBATCH --job-name=flashlm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
set -euo pipefail
text=$1 run=$2
if [[ -e $run/checkpoints ]]; then
    task=(--resume "$run")
else
    task=(--preset v4-large -d "$text" -o "$run" --set train.batch=256 --set train.pass_rows=2048 --set train.checkpoint_seconds=600)
fi
# Where one rank ends, all do. `srun --mpi=list` names the ways to start OpenMPI.
exec srun --mpi=pmix --kill-on-bad-exit=1 --cpu-bind=none flashlm train --threads "$SLURM_CPUS_PER_TASK" "${task[@]}"
