"""The Python package: memory over many models and texts, Ctrl-C, eight threads, and a loop over events against the program.

    python benches/python.py [--texts 100000] [--loads 1000] [--interrupts 9]
    python benches/python.py --texts 0 --loads 0 --interrupts 0 --program target/release/flashlm [--turns 5] [--steps 200]    # a loop of callbacks

Memory is resident MB before and after, the first tenth left out as warming up; a leak of one kB a text would be 100 MB.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time

import flashlm


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def flat(name: str, n: int, work) -> None:
    if n == 0:
        return
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


def training(program: str, steps: int, turns: int) -> None:
    """Seconds of the same run by the program and by a callback for each of its rows, in turns."""
    options = ["--data", "synthetic:2000", "--preset", "flash-tiny", "--steps", str(steps), "--set", "train.log_every=1"]
    seconds = {"program": [], "callbacks": []}
    for turn in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([program, "train", *options, "-o", f"{folder}/a"], check=True, capture_output=True)
            rows = []
            trainer = flashlm.train(
                "synthetic:2000", preset="flash-tiny", steps=steps, save_dir=f"{folder}/b", set={"train.log_every": 1}, quiet=True,
                on_event=lambda event: rows.append(event.loss) if isinstance(event, flashlm.TrainRow) else None,
            )
            with open(f"{folder}/a/result.json") as file:
                theirs, ours = json.load(file)["seconds"], trainer.result["seconds"]
            seconds["program"].append(theirs)
            seconds["callbacks"].append(ours)
            print(f"training, turn {turn + 1}: program {theirs:.2f} s, {len(rows)} callbacks {ours:.2f} s: {ours / theirs:.3f}", flush=True)
    a, b = (statistics.median(seconds[name]) for name in ("program", "callbacks"))
    print(f"training, medians of {turns}: program {a:.2f} s, callbacks {b:.2f} s: {b / a:.3f}")


def interrupts(call, n: int) -> None:
    """Milliseconds from Ctrl-C to KeyboardInterrupt in an endless call."""
    found = []
    for _ in range(n):
        def press() -> None:
            time.sleep(0.2)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        sent = []
        presser = threading.Thread(target=press)
        presser.start()
        try:
            call()
        except KeyboardInterrupt:
            found.append(1e3 * (time.perf_counter() - sent[0]))
        presser.join()
    print(f"Ctrl-C, {n} times: {statistics.median(found):.0f} ms in the median, at most {max(found):.0f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--loads", type=int, default=1_000)
    parser.add_argument("--interrupts", type=int, default=9)
    parser.add_argument("--program")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    model = flashlm.load("builtin")
    flat("models", args.loads, lambda i: flashlm.load("builtin").complete("One", tokens=1))
    flat("texts", args.texts, lambda i: model.complete("One", tokens=8, seed=i))
    flat("streams", args.texts // 10, lambda i: model.stream(seed=i).feed("One day"))
    if args.interrupts:
        interrupts(lambda: model.complete("One", tokens=10**9, logit_bias={model.tokenizer.eos: -100.0}), args.interrupts)
    if args.program:
        training(args.program, args.steps, args.turns)
        return
    speeds = {n: [] for n in (1, 2, 8)}
    for _ in range(args.turns):
        for n, found in speeds.items():
            found.append(threads(model, n))
    one, two, eight = (statistics.median(found) for found in speeds.values())
    print(f"threads, medians of {args.turns}, {len(os.sched_getaffinity(0))} processors: one {one:,.0f} tokens/s, two {two / one:.2f} times, eight {eight / one:.2f} times")


if __name__ == "__main__":
    main()
