#!/usr/bin/env python3
"""Writing: `flashlm bench decode` and PyTorch in turns on the same cores, and the ratios of the medians.

    benches/generate.py                                  # v4-small, one thread, three rounds
    benches/generate.py --preset gdn-small --tokens 50 --threads 2

Both write one greedy text with a model of the same shape and random weights. Each row is one way of running PyTorch:

    original   as the original script: the whole window again for every token, ternarised on every pass
    frozen     the same with weights made ternary once, and logits of the last position alone

FlashLM keeps a state, so its speed does not depend on how much stands written; PyTorch's window grows from --prompt tokens
to at most 256, so its figure is the mean over the text. A PyTorch that keeps a state too would be faster than both rows and
is not measured. FlashLM runs the packed model, with activations of 8 bits; PyTorch is float32. Reading the prompt is on
PyTorch's clock and not on FlashLM's. The memory of FlashLM is that of making and packing the model, and then writing.
"""

import argparse

from turns import ROOT, compare, programs

ROWS = {"original": [], "frozen": ["--frozen"]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="v4-small")
    p.add_argument("--tokens", type=int, default=200, help="that PyTorch writes in each run; default: %(default)s")
    p.add_argument("--prompt", type=int, default=8, help="tokens of the prompt; default: %(default)s")
    p.add_argument("--seconds", type=float, default=2, help="of each of FlashLM's figures; default: %(default)s")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--json", action="store_true", help="print one JSON object")
    args = p.parse_args()
    flashlm, python = programs("torch")

    shared = ["--preset", args.preset, "--prompt", str(args.prompt), "--threads", str(args.threads)]
    commands = {"flashlm": ([flashlm, "bench", "decode", *shared, "--seconds", str(args.seconds), "--json"], {})}
    theirs = [python, str(ROOT / "benches/pytorch/generate.py"), *shared, "--tokens", str(args.tokens)]
    for row, flags in ROWS.items():
        commands[f"pytorch {row}"] = (theirs + flags, {})

    pairs = {row: ("flashlm", f"pytorch {row}") for row in ROWS}
    compare(args, f"{args.preset}, prompt {args.prompt}, {args.tokens} tokens", commands, pairs)


if __name__ == "__main__":
    main()
