"""Throughput of whole training steps in PyTorch: forward, backward, clipping, AdamW, on random tokens.

    python bench.py --preset v4-small --batch 32 --seq 256 --seconds 15 --threads 2 --mode eager --json

The time is cut in three windows; the figure is the median window. Warm-up and compilation come before the clock.
"""

import argparse
import json
import resource
import statistics
import time

import torch

import gdn
from v4 import MODES, PRESETS, Model, make_loss, make_optimizer, train_step

WINDOWS, BATCHES = 3, 8


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", choices=PRESETS | gdn.PRESETS, default="v4-small")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--seconds", type=float, default=15, help="of all windows together")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    p.add_argument("--mode", choices=MODES, default="eager")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(42)
    model = gdn.gdn_model(gdn.PRESETS[args.preset]) if args.preset in gdn.PRESETS else Model(PRESETS[args.preset])
    loss_fn, optimizer = make_loss(model, args.mode), make_optimizer(model, 1e-3, args.mode)
    tokens = torch.randint(0, model.cfg.vocab, (BATCHES, args.batch, args.seq + 1))
    xs, ys = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()

    for step in range(args.warmup):
        train_step(model, loss_fn, optimizer, xs[step % BATCHES], ys[step % BATCHES])
    times, step = [], 0
    for _ in range(WINDOWS):
        start, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - start < args.seconds / WINDOWS:
            train_step(model, loss_fn, optimizer, xs[step % BATCHES], ys[step % BATCHES])
            step += 1
            steps += 1
        times.append((time.perf_counter() - start) / steps)

    seconds = statistics.median(times)
    result = {
        "tokens_per_second": args.batch * args.seq / seconds,
        "ms_per_step": 1e3 * seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "steps": step,
        "mode": args.mode,
        "threads": args.threads,
        "torch": torch.__version__,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
