"""The Python package: memory over many models and texts, eight threads, and a loop over events against the program.

    python benches/python.py [--texts 100000] [--loads 1000] [--program target/release/flashlm]

Memory is resident MB before and after, the first tenth left out as warming up; a leak of one kB a text would be 100 MB.
"""

import argparse
import os
import subprocess
import tempfile
import threading
import time

import flashlm


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def flat(name: str, n: int, work) -> None:
    for i in range(n // 10):
        work(i)
    before, start = resident(), time.perf_counter()
    for i in range(n - n // 10):
        work(i)
    seconds = time.perf_counter() - start
    print(f"{name}: {n:,}, memory {before:.1f} -> {resident():.1f} MB, {1e3 * seconds / (n - n // 10):.3f} ms each", flush=True)


def threads(model: flashlm.Model, n: int) -> float:
    """Tokens per second of n threads, each writing its own texts."""
    settings = {"tokens": 200, "logit_bias": {model.tokenizer.eos: -100.0}}
    workers = [threading.Thread(target=lambda: [model.complete("One", **settings) for _ in range(20)]) for _ in range(n)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return n * 20 * 200 / (time.perf_counter() - start)


def training(program: str, steps: int) -> None:
    """Seconds of the same run by the program and by a loop over its events, in turns."""
    options = ["--data", "synthetic:2000", "--preset", "flash-tiny", "--steps", str(steps), "--set", "train.log_every=1"]
    for turn in range(3):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([program, "train", *options, "-o", f"{folder}/a"], check=True, capture_output=True)
            trainer = flashlm.Trainer(
                "synthetic:2000", preset="flash-tiny", steps=steps, save_dir=f"{folder}/b", set={"train.log_every": 1}
            )
            rows = sum(isinstance(event, flashlm.TrainRow) for event in trainer)
            import json

            theirs = json.load(open(f"{folder}/a/result.json"))["seconds"]
            ours = trainer.result["seconds"]
            print(f"training, turn {turn}: program {theirs:.2f} s, {rows} rows in Python {ours:.2f} s: {ours / theirs:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--loads", type=int, default=1_000)
    parser.add_argument("--program")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    model = flashlm.load("builtin")
    flat("models", args.loads, lambda i: flashlm.load("builtin").complete("One", tokens=1))
    flat("texts", args.texts, lambda i: model.complete("One", tokens=8, seed=i))
    flat("streams", args.texts // 10, lambda i: model.stream(seed=i).feed("One day"))
    one = threads(model, 1)
    for n in (2, 8):
        print(f"{n} threads: {threads(model, n) / one:.2f} times one ({one:,.0f} tokens/s, {len(os.sched_getaffinity(0))} processors)")
    if args.program:
        training(args.program, args.steps)


if __name__ == "__main__":
    main()
