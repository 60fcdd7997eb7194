#!/usr/bin/env python3
"""What is left of the speed while another program is busy on one processor: training, and 64 sequences of decoding, in turns with quiet runs.

    benches/busy.py                          # v4-small
    benches/busy.py --rounds 3 --seconds 8 --preset hybrid-small
    FLASHLM=/path/to/another/flashlm benches/busy.py
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys

from turns import ROOT


def busy(processor):
    """A loop that never rests."""
    os.sched_setaffinity(0, {processor})
    while True:
        pass


def speed(command):
    """The tokens per second that a benchmark prints."""
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if run.returncode:
        sys.exit(f"failed (exit code {run.returncode}): {' '.join(command)}")
    return json.loads(run.stdout)["tokens_per_second"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="v4-small")
    p.add_argument("--seconds", default="5", help="of each run (default: %(default)s)")
    p.add_argument("--rounds", type=int, default=2)
    args = p.parse_args()
    flashlm = os.environ.get("FLASHLM", str(ROOT / "target/release/flashlm"))
    if not os.access(flashlm, os.X_OK):
        sys.exit(f"{flashlm} is not there: run 'cargo build --release', or set FLASHLM")
    processors = sorted(os.sched_getaffinity(0))
    common = ["--preset", args.preset, "--seconds", args.seconds, "--threads", str(len(processors)), "--json"]
    for name, command in [
        ("training", [flashlm, "bench", "train", *common]),
        ("64 sequences", [flashlm, "bench", "decode", "--streams", "64", *common]),
    ]:
        quiet, shared = [], []
        for _ in range(args.rounds):
            quiet.append(speed(command))
            other = multiprocessing.Process(target=busy, args=(processors[-1],), daemon=True)
            other.start()
            shared.append(speed(command))
            other.kill()
            other.join()
        share = statistics.median(shared) / statistics.median(quiet)
        listed = [" ".join(f"{x:.0f}" for x in runs) for runs in (quiet, shared)]
        print(f"{args.preset}, {name}: quiet {listed[0]}, beside a busy program {listed[1]} tokens/s: {share:.2f}")


if __name__ == "__main__":
    main()
