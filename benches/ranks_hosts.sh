#!/usr/bin/env bash
# Two hosts with a slow link between them, as two network namespaces of this machine: 2 ranks over TCP train the bits of one process, and
# their tokens per second are compared with what `flashlm bench ranks` forecasts. Root only.
# Usage: benches/ranks_hosts.sh [PROGRAM [MBIT/S [DELAY_MS]]], a flashlm built with --features mpi; 100 Mb/s and 10 ms.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(readlink -f "${1:-${CARGO_TARGET_DIR:-target}/release/flashlm}")
mbit=${2:-100} delay=${3:-10}
command -v mpirun > /dev/null || { echo "skipped: there is no mpirun here"; exit 0; }
a=fl-a-$$ b=fl-b-$$
ip netns add $a 2> /dev/null || { echo "skipped: network namespaces need root"; exit 0; }
ip netns add $b
folder=$(mktemp -d)
link=
trap '[[ -z $link ]] || kill $link 2> /dev/null; ip netns del $a; ip netns del $b; rm -rf "$folder"' EXIT
export FLASHLM_CACHE=$folder/cache
python3 benches/link.py $a $b "$mbit" "$delay" > "$folder/link" &
link=$!
for _ in $(seq 50); do grep -q ready "$folder/link" && break; sleep 0.1; done

# What mpirun starts the other host with, in the place of ssh: HOST COMMAND...
cat > "$folder/agent" <<AGENT
#!/bin/sh
shift
exec ip netns exec $b unshare --uts sh -c 'hostname host-b; exec sh -c "\$*"' - "\$@"
AGENT
chmod +x "$folder/agent"
hosts() {
    ip netns exec $a unshare --uts sh -c 'hostname host-a; exec "$@"' - mpirun --allow-run-as-root -n 2 --map-by node \
        --host 10.77.0.1:1,10.77.0.2:1 --mca plm_rsh_agent "$folder/agent" --mca btl tcp,self --mca btl_tcp_if_include cable \
        --mca oob_tcp_if_include cable --mca hwloc_base_binding_policy none -x FLASHLM_CACHE "$@"
}
hosts sh -c 'echo "rank $OMPI_COMM_WORLD_RANK on $(hostname)"'

passes=2 steps=20
new=(--preset v4-small -d synthetic:500 --precision f32 --set train.steps=$steps --set train.batch=$passes --set train.pass_rows=64
    --set train.seq_len=64 --set train.log_every=$steps --set train.sample_every=0 --set train.checkpoint_every=$steps
    --set train.eval_every=$steps --set train.eval_tokens=2000 --set tokenizer.vocab=1024)
"$program" train --threads 1 "${new[@]}" -o "$folder/alone" > "$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
hosts "$program" train --threads 1 "${new[@]}" -o "$folder/two" > "$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
for file in model.safetensors optimizer.safetensors; do
    cmp "$folder/alone/checkpoints/step-000000$steps/$file" "$folder/two/checkpoints/step-000000$steps/$file"
done
echo "two hosts: the bits of one process after $steps updates"
"$program" bench ranks --json --preset v4-small --passes $passes --ranks 1,2 --threads 1 --precision f32 --delay "$delay" \
    --gigabits "$(awk -v m="$mbit" 'BEGIN { print m / 1000 }')" --set train.pass_rows=64 --set train.seq_len=64 \
    --set tokenizer.vocab=1024 > "$folder/forecast"
python3 - "$folder" <<'PYTHON'
import json, sys
folder = sys.argv[1]
def speed(run):
    rows = [json.loads(line) for line in open(f"{folder}/{run}/metrics.jsonl")]
    return [row["tokens_per_second"] for row in rows if row["kind"] == "train"][-1]
forecast = {row["ranks"]: row["tokens_per_second"] for row in json.load(open(f"{folder}/forecast"))["rows"]}
for ranks, run in (1, "alone"), (2, "two"):
    print(f"{ranks} rank(s): {speed(run):.0f} tokens/s, forecast {forecast[ranks]:.0f}: {100 * (speed(run) / forecast[ranks] - 1):+.0f} %")
PYTHON
