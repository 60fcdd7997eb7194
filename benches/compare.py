#!/usr/bin/env python3
"""Training throughput: FlashLM and PyTorch in turns on the same cores, and the ratios of the medians.

    benches/compare.py                                   # v4-small, T 256, everything, about half an hour
    benches/compare.py --preset v4-large --seq 512 --batch 4 --rows original,best
    benches/compare.py --rows fp32 --rounds 3 --seconds 10

Each row sets one way of running FlashLM against one way of running PyTorch:

    original   whatever FlashLM takes by itself     float32 eager, batch 2: as the original script trains
    eager      "                                    float32 eager, the same batch
    bf16       "                                    bfloat16 autocast
    best       "                                    bfloat16 autocast, torch.compile, fused AdamW, tuned allocator
    fp32       f32 on vector units, no tiles        float32, torch.compile, fused AdamW, tuned allocator
    avx2       f32 held to AVX2                     the same held to AVX2
    int8       int8, as best                        as best
    avx2-int8  int8 held to AVX2                    as avx2
    vnni       int8 held to AVX2 with 256-bit VNNI  as avx2

A round runs every program once, so that a change of clock speed or a busy neighbour hits all of them.
"""

import argparse
import os

from turns import ROOT, compare, programs

# Keeps what was freed: PyTorch's activations are large, and pages given back are paid for again.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "268435456"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
OURS = {
    "auto": (["--precision", "auto"], {}),
    "f32": (["--precision", "f32"], {}),
    "avx2": (["--precision", "f32"], {"FLASHLM_ISA": "avx2"}),
    "int8": (["--precision", "int8"], {}),
    "avx2-int8": (["--precision", "int8-f32"], {"FLASHLM_ISA": "avx2"}),
    "vnni": (["--precision", "int8-f32"], {"FLASHLM_ISA": "avxvnni"}),
}
# row: ours, PyTorch's mode, its environment, its batch where that is not ours.
ROWS = {
    "original": ("auto", "eager", {}, 2),
    "eager": ("auto", "eager", {}, None),
    "bf16": ("auto", "bf16", {}, None),
    "best": ("auto", "compile", TUNED, None),
    "fp32": ("f32", "compile-fp32", TUNED, None),
    "avx2": ("avx2", "compile-fp32", TUNED | AVX2, None),
    "int8": ("int8", "compile", TUNED, None),
    "avx2-int8": ("avx2-int8", "compile-fp32", TUNED | AVX2, None),
    "vnni": ("vnni", "compile-fp32", TUNED | AVX2, None),
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="v4-small")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--seconds", type=float, default=12, help="of each run, warm-up and compilation apart")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rows", default=",".join(ROWS), help="comma-separated; default: %(default)s")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    args = p.parse_args()
    rows = args.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        p.error(f"unknown row {unknown[0]!r}; there are {', '.join(ROWS)}")
    flashlm, python = programs("torch")

    def size(batch):
        figures = {"--preset": args.preset, "--batch": batch, "--seq": args.seq, "--seconds": args.seconds}
        return [str(part) for pair in figures.items() for part in pair] + ["--threads", str(args.threads), "--json"]

    commands = {}
    for row in rows:
        ours, mode, env, batch = ROWS[row]
        flags, own_env = OURS[ours]
        commands[f"flashlm {ours}"] = ([flashlm, "bench", "train", *size(args.batch), *flags], own_env)
        bench = [python, str(ROOT / "benches/pytorch/bench.py"), *size(batch or args.batch), "--mode", mode]
        commands[f"pytorch {row}"] = (bench, env)

    pairs = {row: (f"flashlm {ROWS[row][0]}", f"pytorch {row}") for row in rows}
    compare(args, f"{args.preset}, batch {args.batch}, T {args.seq}", commands, pairs)


if __name__ == "__main__":
    main()
