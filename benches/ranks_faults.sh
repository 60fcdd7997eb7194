#!/usr/bin/env bash
# Faults of ranks under a real MPI, each provoked once: seconds from the fault to the end of the job, the step that is resumed from, and that the
# resumed run ends with the bits of one that nothing disturbed; then what is refused at the start, and ranks without a shared disk.
# Usage: benches/ranks_faults.sh [PROGRAM], a flashlm built with --features mpi. The full disk needs root, for a small tmpfs; to hold a
# single thread needs the right to trace a process, and where CI is set it fails without.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(readlink -f "${1:-${CARGO_TARGET_DIR:-target}/release/flashlm}")
command -v mpirun > /dev/null || { echo "skipped: there is no mpirun here"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_hwloc_base_binding_policy=none
folder=$(mktemp -d)
job=
trap '[[ -z $job ]] || { kill -CONT $(pgrep -P $job); kill $job; } 2> /dev/null || true; umount "$folder/disk" 2> /dev/null || true; rm -rf "$folder"' EXIT
export FLASHLM_CACHE=$folder/cache
steps=300
new=(--preset flash-tiny -d synthetic:300 --precision f32 --set train.steps=$steps --set train.batch=4 --set train.pass_rows=64
    --set train.seq_len=64 --set train.checkpoint_every=25 --set train.keep=99 --set train.eval_every=150 --set train.sample_every=0)
fail() { echo "FAILED: $*"; cat "$folder/out"; exit 1; }
now() { date +%s.%N; }
newest() { ls "$1/checkpoints" 2> /dev/null | grep '^step-[0-9]*$' | tail -1; }
# start RUN [MPIRUN'S ARGUMENTS...]: 2 ranks, until two checkpoints are there.
start() {
    local run=$1
    shift
    mpirun -n 2 "$@" "$program" train --threads 1 "${new[@]}" -o "$run" > "$folder/out" 2>&1 &
    job=$!
    for _ in $(seq 600); do
        [[ $(newest "$run") > step-00000025 ]] && return
        kill -0 $job 2> /dev/null || fail "the run ended too early"
        sleep 0.1
    done
    fail "the run does not begin"
}
# The process of a rank.
rank() {
    local pid
    for pid in $(pgrep -P $job); do
        if tr '\0' '\n' < /proc/$pid/environ | grep -qx "OMPI_COMM_WORLD_RANK=$1"; then echo $pid; fi
    done
}
# ended NAME RUN EXPECTED-TEXT EXPECTED-CODES MOST-SECONDS: waits for the job's end, checks what it said, resumes, and compares.
ended() {
    local began=$fault code=0 took from
    wait $job || code=$?
    job=
    took=$(awk -v a="$began" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }')
    grep -q "$3" "$folder/out" || fail "$1: '$3' was not said"
    [[ " $4 " == *" $code "* ]] || fail "$1: exit code $code"
    awk -v t="$took" -v most="$5" 'BEGIN { exit !(t < most) }' || fail "$1: it took $took s"
    from=$(newest "$2")
    mpirun -n 2 "$program" train --threads 1 --resume "$2" > "$folder/resumed" 2>&1 || { cat "$folder/resumed"; fail "$1: resume"; }
    grep -q "resumed from step $((10#${from#step-}))" "$folder/resumed" || fail "$1: resumed from another step"
    same "$2"
    printf '%-26s %6s s   exit %3s   resumed from %-13s the same bits   %s\n' "$1" "$took" "$code" "$from," \
        "$(grep -m1 -o "$3.*" "$folder/out" | cut -c 1-90)"
}
same() {
    local file
    for file in model.safetensors optimizer.safetensors; do
        cmp "$folder/alone/checkpoints/step-00000$steps/$file" "$1/checkpoints/step-00000$steps/$file" || fail "other bits in $1"
    done
}

"$program" train --threads 1 "${new[@]}" -o "$folder/alone" > "$folder/out" 2>&1 || fail "alone"

for n in 1 0; do
    start "$folder/killed-$n"; fault=$(now); kill -KILL "$(rank $n)"
    ended "SIGKILL of rank $n" "$folder/killed-$n" "rank $n with PID" "137 1" 10
done
for n in 1 0; do
    start "$folder/stopped-$n"; fault=$(now); kill -STOP "$(rank $n)"
    ended "SIGSTOP of rank $n" "$folder/stopped-$n" "rank $n has not been heard of" "1" 10
done
# The thread that trains stands still, as under a debugger; the process lives, and its signs of life go on.
for n in 1 0; do
    start "$folder/held-$n"
    pid=$(rank $n)
    python3 - "$pid" > "$folder/held" 2>&1 <<'PYTHON' &
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes, libc.ptrace.restype = [ctypes.c_long] * 4, ctypes.c_long
pid, SEIZE, INTERRUPT, WALL = int(sys.argv[1]), 0x4206, 0x4207, 0x40000000
if libc.ptrace(SEIZE, pid, 0, 0) or libc.ptrace(INTERRUPT, pid, 0, 0):
    sys.exit("ptrace: " + os.strerror(ctypes.get_errno()))
os.waitpid(pid, WALL)
print("held", flush=True)
while os.path.exists(f"/proc/{pid}/task"):
    time.sleep(0.1)
    if os.waitpid(pid, os.WNOHANG | WALL)[0] == pid:
        break
PYTHON
    holder=$!
    for _ in $(seq 50); do [[ -s $folder/held ]] && break; sleep 0.1; done
    if grep -q held "$folder/held"; then
        fault=$(now)
        ended "a thread of rank $n held" "$folder/held-$n" "rank $n stands still in step" "1" 10
    else
        kill $job
        wait $job || true
        job=
        [[ -z ${CI:-} ]] || fail "a thread of rank $n cannot be held: $(cat "$folder/held")"
        echo "a thread of rank $n held     skipped: $(cat "$folder/held")"
    fi
    kill $holder 2> /dev/null || true
done
start "$folder/limit" -x FLASHLM_RANK_SECONDS=2; fault=$(now); kill -STOP "$(rank 1)"
ended "the same, limit 2 s" "$folder/limit" "rank 1 has not been heard of for 2 s" "1" 6
for n in 1 0; do
    start "$folder/term-$n"; fault=$(now); kill -TERM "$(rank $n)"
    ended "SIGTERM to rank $n" "$folder/term-$n" "interrupted; step" "130" 10
done
start "$folder/term"; fault=$(now); kill -TERM $job
ended "SIGTERM to mpirun" "$folder/term" "stopping and saving" "0 1 130 143" 10

# A rank that is stopped half of the time is told of, and not given up.
start "$folder/slow"; fault=$(now); slow=$(rank 1)
for _ in $(seq 15); do kill -STOP "$slow" 2> /dev/null; sleep 0.3; kill -CONT "$slow" 2> /dev/null; sleep 0.3; done
wait $job || fail "a slow rank"
job=
same "$folder/slow"
grep -q "rank 1 is slow" "$folder/out" || fail "a slow rank is not told of"
printf '%-26s goes on, the same bits   %s; the last row of the log: %s\n' "rank 1 slow" "$(grep -o 'rank 1 is slow.*' "$folder/out")" \
    "$(grep -o '"waited":[^]]*]' "$folder/slow/metrics.jsonl" | tail -1)"

# A disk with room for some checkpoints; for the resumed run there is more.
mkdir "$folder/disk"
if mount -t tmpfs -o size=40m tmpfs "$folder/disk" 2> /dev/null; then
    start "$folder/disk/run"
    head -c 100m /dev/zero > "$folder/disk/filler" 2> /dev/null || true
    for _ in $(seq 300); do grep -q "rank 0 cannot save" "$folder/out" && break; sleep 0.1; done
    fault=$(now); rm "$folder/disk/filler"; mount -o remount,size=400m "$folder/disk"
    ended "a full disk" "$folder/disk/run" "rank 0 cannot save step" "1" 10
else
    echo "a full disk                skipped: a tmpfs needs root"
fi

# refused NAME EXPECTED-TEXT MPIRUN'S ARGUMENTS...
refused() {
    local name=$1 want=$2 code=0
    shift 2
    fault=$(now)
    mpirun "$@" > "$folder/out" 2>&1 || code=$?
    [[ $code != 0 ]] && grep -q "$want" "$folder/out" || fail "$name: exit code $code"
    printf '%-26s %6s s   exit %3s   %s\n' "$name" "$(awk -v a="$fault" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }')" "$code" \
        "$(grep -m1 -o "$want.*" "$folder/out" | cut -c 1-120)"
}
one=("$program" train --threads 1 "${new[@]}" -o "$folder/refused")
refused "other settings" "rank 1 has another list of flags than rank 0" -n 1 "${one[@]}" : -n 1 "${one[@]}" --lr 0.1
refused "another text" "rank 1 has another list of flags than rank 0" -n 1 "${one[@]}" : -n 1 "${one[@]}" -d synthetic:200
refused "another instruction set" "rank 1 has another instruction set than rank 0" -n 1 "${one[@]}" : -n 1 -x FLASHLM_ISA=scalar "${one[@]}"
refused "3 ranks" "3 ranks: must be a power of two" -n 3 "${one[@]}"
refused "8 ranks, 4 passes" "8 ranks, but an update has 4 passes" -n 8 "${one[@]}"
# Each rank in a folder of its own, with a text, a vocabulary and settings of the same names.
mkdir "$folder"/{a,b}
for at in a b; do
    "$program" data sample synthetic:300 -n 300 > "$folder/$at/book.txt" 2> /dev/null
    cp "$folder/alone/checkpoints/step-00000$steps/tokenizer.json" "$folder/$at/words.json"
    echo 'train.lr = 0.001' > "$folder/$at/own.toml"
done
own=(train --threads 1 "${new[@]/synthetic:300/book.txt}" --tokenizer words.json --config own.toml)
for file in book.txt:text words.json:tokenizer "own.toml:settings file"; do
    what=${file#*:} file=${file%:*}
    cp "$folder/b/$file" "$folder/kept"
    echo >> "$folder/b/$file"
    refused "another $what" "rank 1 has another $what $file than rank 0: [0-9,]* bytes with checksum [0-9a-f]*, not [0-9,]* bytes with checksum" \
        -n 1 -wdir "$folder/a" "$program" "${own[@]}" -o "$folder/refused" : \
        -n 1 -wdir "$folder/b" "$program" "${own[@]}" -o "$folder/refused"
    mv "$folder/kept" "$folder/b/$file"
done
[[ ! -e $folder/refused ]] || fail "what was refused left a run"

# Without a shared disk: rank 1 has another home, another cache and no text, or another one.
(cd "$folder/a" && "$program" "${own[@]}" -o "$folder/book") > "$folder/out" 2>&1 || fail "a run on the book"
apart() {
    local name=$1 run=$2 line=() at
    shift 2
    for at in a b; do
        line+=(: -n 1 -wdir "$folder/$at" -x HOME="$folder/$at" -x FLASHLM_CACHE="$folder/$at/cache" "$program" "${own[@]}" -o "$run" "$@")
    done
    mpirun "${line[@]:1}" > "$folder/out" 2>&1 || fail "$name"
    for file in model.safetensors optimizer.safetensors; do
        cmp {"$folder/book","$run"}"/checkpoints/step-00000$steps/$file" || fail "$name: other bits"
    done
    [[ ! -e $folder/b/cache ]] || fail "$name: rank 1 has written a cache"
    echo "$name: the bits of one process"
}
rm "$folder"/b/{book.txt,words.json,own.toml}
apart "a rank without text, vocabulary and settings" "$folder/apart-1"
echo "another text" > "$folder/b/book.txt"
apart "a rank with another text, --data-copy" "$folder/apart-2" --data-copy
