"""What the comparisons share: where the programs are, the cores they are held to, runs in turns, what is printed of them."""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def programs(module):
    """The paths of flashlm and of a Python that has `module`."""
    flashlm = os.environ.get("FLASHLM", str(ROOT / "target/release/flashlm"))
    python = os.environ.get("PYTHON", sys.executable)
    if not os.access(flashlm, os.X_OK):
        sys.exit(f"{flashlm} is not there: run 'cargo build --release', or set FLASHLM")
    if subprocess.run([python, "-c", f"import {module}"], stderr=subprocess.DEVNULL).returncode:
        sys.exit(f"{python} has no {module}: see benches/README.md, or set PYTHON")
    return flashlm, python


def pin(threads):
    """What stands before a command to hold it to the first cores."""
    return ["taskset", "-c", f"0-{threads - 1}"] if shutil.which("taskset") else []


def in_turns(commands, rounds, threads):
    """Commands are name: (arguments, environment). The JSON that each prints, a run a round, and its median tokens per second."""
    results = {name: [] for name in commands}
    for number in range(rounds):
        for name, (command, env) in commands.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            run = subprocess.run(pin(threads) + command, env=os.environ | env, stdout=subprocess.PIPE, text=True)
            if run.returncode:
                sys.exit(f"{name} failed (exit code {run.returncode}): {' '.join(command)}")
            results[name].append(json.loads(run.stdout))
    return results, {name: statistics.median(run["tokens_per_second"] for run in runs) for name, runs in results.items()}


def compare(args, title, commands, pairs):
    """Runs the commands in turns and prints every run, the medians, and of each pair row: (ours, theirs) their ratio."""
    # All see the same cores, so none needs to be told how many threads to start.
    results, speed = in_turns(commands, args.rounds, args.threads)
    ratios = {row: speed[ours] / speed[theirs] for row, (ours, theirs) in pairs.items()}
    if args.json:
        print(json.dumps({"arguments": vars(args), "runs": results, "tokens_per_second": speed, "ratios": ratios}))
        return
    print(f"{title}, {args.threads} threads, {args.rounds} rounds")
    for name, runs in results.items():
        listed = " ".join(f"{run['tokens_per_second']:.1f}" for run in runs)
        memory = max(run["peak_rss_mb"] for run in runs)
        how = " ".join(filter(None, (runs[0].get("isa"), runs[0].get("precision"))))
        print(f"  {name:18} {speed[name]:9.1f} tokens/s  ({listed})  peak {memory:.0f} MB  {how}")
    for row, ratio in ratios.items():
        print(f"  {row:18} {ratio:9.2f} x")
