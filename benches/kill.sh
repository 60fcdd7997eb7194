#!/usr/bin/env bash
# Kills a run with SIGKILL at random moments while it saves a checkpoint every second, resumes it each time, and checks that
# every resume works and loses no more than the last interval (plus the time of writing). Usage: benches/kill.sh [ROUNDS]
set -euo pipefail
rounds=${1:-50}
cargo build --release --quiet
flashlm=$PWD/target/release/flashlm
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export FLASHLM_CACHE=$place/cache
cd "$place"
flags="--preset flash-tiny --data synthetic:2000 --minutes 600 --set train.checkpoint_seconds=1 --set train.log_every=1
  --set train.eval_every=0 --set train.sample_every=0 --save-dir run"
"$flashlm" train $flags --steps 1 > /dev/null 2> log || { cat log; exit 1; }
rm -rf run
lost_most=0
for round in $(seq "$rounds"); do
  if [ -e run/checkpoints ] && ls run/checkpoints | grep -q '^step-'; then args="--resume run"; else rm -rf run; args="$flags"; fi
  "$flashlm" train $args > /dev/null 2> log &
  pid=$!
  sleep "$(awk -v r="$RANDOM" 'BEGIN { printf "%.3f", 0.6 + 3.2 * r / 32768 }')"
  kill -KILL $pid 2> /dev/null || { echo "round $round: the run ended by itself:"; cat log; exit 1; }
  wait $pid 2> /dev/null || true
  # What was trained after the newest checkpoint is lost: the rows of metrics tell how many seconds that is.
  lost=$(python3 - <<'PY'
import json, os
steps = sorted(int(d[5:]) for d in os.listdir("run/checkpoints") if d.startswith("step-") and d[5:].isdigit()) if os.path.isdir("run/checkpoints") else []
elapsed, last = {0: 0.0}, 0.0
for line in open("run/metrics.jsonl"):
    try:
        row = json.loads(line)
    except ValueError:
        continue
    if row["kind"] == "train":
        elapsed[row["step"]] = last = row["elapsed"]
print(f"{last - elapsed.get(steps[-1] if steps else 0, 0.0):.2f}")
PY
)
  lost_most=$(awk -v a="$lost_most" -v b="$lost" 'BEGIN { print (a > b) ? a : b }')
  echo "round $round: killed, $lost s of training lost"
done
"$flashlm" train --resume run --minutes 0 --steps 1 > /dev/null 2> log || { cat log; exit 1; }
grep 'resumed from' log
echo "$rounds kills, every one resumed; at most $lost_most s of training lost"
