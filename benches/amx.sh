#!/usr/bin/env bash
# All that must be known on a machine with AMX, in about ten minutes, as the tables of docs/performance.md in Markdown. Linux.
#
#   benches/amx.sh > amx.md              # after: cargo build --release; PYTHON with torch for the comparison
#   benches/amx.sh --anyway --seconds 1  # on any machine, to try the script
set -euo pipefail
cd "$(dirname "$0")/.."
flashlm=${FLASHLM:-target/release/flashlm} python=${PYTHON:-python3} seconds=8 anyway=
while (($#)); do
  case $1 in
    --anyway) anyway=1 ;;
    --seconds) seconds=${2:?} && shift ;;
    *) echo "usage: benches/amx.sh [--anyway] [--seconds N]" >&2 && exit 2 ;;
  esac
  shift
done
if ! grep -qw amx_bf16 /proc/cpuinfo && [[ ! $anyway ]]; then
  echo "this processor has no AMX: /proc/cpuinfo does not list amx_bf16 (--anyway runs on any machine, to try the script)" >&2
  exit 1
fi
[[ -x $flashlm ]] || { echo "$flashlm is not there: cargo build --release, or set FLASHLM" >&2 && exit 1; }

tell() { echo "$(date +%T) $*" >&2; }
# Fields of one JSON object on standard input, with a format for them: figures '{tokens_per_second:,.0f}'
figures() { "$python" -c 'import json, sys; print(sys.argv[1].format(**json.load(sys.stdin)))' "$1"; }
train() { "$flashlm" bench train --seconds "$seconds" --json "$@" 2>/dev/null; }
decode() { "$flashlm" bench decode --seconds "$seconds" --json "$@" 2>/dev/null; }
threads=$(nproc)

echo "## Measured with AMX"
echo
echo '```text'
"$flashlm" doctor
echo '```'

tell "ops"
echo
echo "### What a step costs"
echo
echo "    flashlm bench train --ops --batch 32"
echo
train --batch 32 --ops | "$python" -c '
import json, sys
d = json.load(sys.stdin)
print("| op | size | share | per thread |\n|---|---|---|---|")
for op in d["ops"]:
    (a, b), name, share, rate, unit = op["size"], op["op"], op["share"], op["rate_one_thread"], op["unit"]
    print(f"| {name} | {a} x {b} | {100 * share:.1f} % | {rate:.0f} {unit} |")
rest = 1 - sum(op["share"] for op in d["ops"])
print(f"| rest | | {100 * rest:.1f} % | |")
speed, percent, memory = d["tokens_per_second"], d["percent_of_peak"], d["peak_rss_mb"]
print(f"| **tokens/s** | | **{speed:,.0f}** | {percent:.0f} % of peak, {memory:.0f} MB |")'

tell "precisions"
echo
echo "### Precisions"
echo
echo "    flashlm bench train --precision P"
echo
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
# 8,192 tokens a step for all.
for size in "v4-small --batch 32" "v4-large --batch 16" "gdn-small --batch 16"; do
  for precision in f32 bf16 int8; do
    # shellcheck disable=SC2086
    train --preset $size --precision $precision >>"$rows" || tell "$size: no $precision in this build"
  done
done
"$python" -c '
import json, sys
rows = [json.loads(line) for line in sys.stdin]
speed = {(d["preset"], d["precision"]): d["tokens_per_second"] for d in rows}
print("| preset | precision | tokens/s | of peak | to bf16 | to v4-small |\n|---|---|---|---|---|---|")
for d in rows:
    preset, precision, seq = d["preset"], d["precision"], d["seq"]
    own, percent = d["tokens_per_second"], d["percent_of_peak"]
    bf16, small = own / speed[preset, "bf16"], own / speed["v4-small", precision]
    print(f"| {preset}, T {seq} | {precision} | {own:,.0f} | {percent:.0f} % | {bf16:.2f} | {small:.2f} |")' <"$rows"

tell "generation"
echo
echo "### Generation"
echo
echo "    flashlm bench decode --streams N --threads T"
echo
echo "| | tokens/s | prompt, tokens/s | first token |"
echo "|---|---|---|---|"
for preset in v4-small gdn-small; do
  for how in "1 1" "64 1" "64 $threads"; do
    read -r streams count <<<"$how"
    decode --preset $preset --streams "$streams" --threads "$count" | figures \
      "| {model}, {streams} sequence(s), {threads} thread(s) | {tokens_per_second:,.0f} | {prefill_tokens_per_second:,.0f} | {first_token_us:.0f} us |"
  done
done

echo
echo "### Compared with PyTorch"
if "$python" -c 'import torch' 2>/dev/null; then
  for size in "v4-small --batch 32 --seq 256" "v4-large --batch 4 --seq 512"; do
    tell "PyTorch, $size"
    echo
    echo "    benches/compare.py --preset $size --rows original,best --rounds 2 --seconds $seconds"
    echo
    echo "| compared with PyTorch | FlashLM | PyTorch | ratio |"
    echo "|---|---|---|---|"
    # shellcheck disable=SC2086
    FLASHLM=$flashlm PYTHON=$python "$python" benches/compare.py --preset $size --rows original,best --rounds 2 --seconds "$seconds" --json |
      "$python" -c '
import json, sys
d = json.load(sys.stdin)
speed = d["tokens_per_second"]
for row, ratio in d["ratios"].items():
    ours, theirs = speed["flashlm auto"], speed["pytorch " + row]
    print(f"| {row} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} |")'
  done
else
  echo
  echo "Not measured: $python has no torch; see benches/README.md, or set PYTHON."
fi
tell "done"
