#!/usr/bin/env python3
"""Tokenizing: `flashlm data prepare` and Python's tiktoken in turns on the same text and cores, and the ratios of the medians.

    benches/tokenize.py --text books.txt.zst             # both vocabularies, three rounds
    benches/tokenize.py --text stories.txt --rows bpe --rounds 1

Each row is one vocabulary:

    frequency   GPT-2's: ours keeps the 10,000 most frequent ids, tiktoken has `gpt2`
    bpe         4,096 tokens trained on the text: tiktoken gets the merges that FlashLM learned

What is on the clock is not the same, to our disadvantage. FlashLM: the whole command, that is start, decompression, repair
of mojibake, training of the vocabulary, tokens of both sides of the split, checksums, writing and syncing the files.
tiktoken: `encode_ordinary_batch` on stories that are in memory, 8 MB at a time, and nothing else. The row `encode` is the
same command where the vocabulary is there already. CPU time and the largest resident memory
are those of the whole process. Needs: tiktoken; for a .zst also the program zstd; for `frequency` the ranks of GPT-2
(--ranks r50k_base.tiktoken; else those in Cargo's registry, else tiktoken fetches them).
"""

import argparse
import base64
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from turns import pin, programs

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
BATCH = 8 << 20


def gpt2(ranks):
    import tiktoken

    pattern = os.path.expanduser("~/.cargo/registry/src/*/tiktoken-rs-*/assets/r50k_base.tiktoken")
    ranks = ranks or next(iter(glob.glob(pattern)), None)
    if not ranks:
        return tiktoken.get_encoding("gpt2")
    lines = (line.split() for line in open(ranks, "rb"))
    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines}, special_tokens={}
    )


def trained(path):
    """The BPE of a tokenizer.json of FlashLM, whose ids are EOS, the bytes, one a merge."""
    import tiktoken

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    vocab = json.load(open(path))["model"]["vocab"]
    ranks = {bytes(byte_of[c] for c in token): id - 1 for token, id in vocab.items() if id > 0}
    return tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def stories(path):
    if path.endswith(".zst"):
        lines = subprocess.Popen(["zstd", "-dc", path], stdout=subprocess.PIPE).stdout
    else:
        lines = open(path, "rb")
    story = []
    for line in lines:
        if line.rstrip(b"\r\n") == b"<|endoftext|>":
            yield b"".join(story).decode().strip("\r\n")
            story = []
        else:
            story.append(line)
    yield b"".join(story).decode().strip("\r\n")


def child(args):
    """tiktoken's part: prints seconds, bytes and tokens."""
    encoding = trained(args.tokenizer) if args.tokenizer else gpt2(args.ranks)
    encoding.encode_ordinary("warm up")
    seconds = size = tokens = 0
    batch = []

    def encode():
        nonlocal seconds, tokens
        start = time.perf_counter()
        ids = encoding.encode_ordinary_batch(batch, num_threads=args.threads)
        seconds += time.perf_counter() - start
        tokens += sum(map(len, ids))

    held = 0
    for story in filter(None, stories(args.text)):
        batch.append(story)
        held += len(story)
        size += len(story.encode())
        if held >= BATCH:
            encode()
            batch, held = [], 0
    encode()
    print(json.dumps({"seconds": seconds, "bytes": size, "tokens": tokens}))


def run(command, env, threads):
    """Wall time, CPU time, largest resident memory in MB and the JSON that the command prints."""
    start = time.perf_counter()
    process = subprocess.Popen([*pin(threads), *command], stdout=subprocess.PIPE, env=os.environ | env)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, json.loads(text)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", required=True, help="stories between lines <|endoftext|>, plain or .zst")
    p.add_argument("--rows", default="frequency,bpe", help="comma-separated; default: %(default)s")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--ranks", help="GPT-2's ranks, a .tiktoken file")
    p.add_argument("--tokenizer", help=argparse.SUPPRESS)
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        return child(args)
    flashlm, python = programs("tiktoken")
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for row in args.rows.split(","):
                vocab = {"frequency": "10000", "bpe": "4096"}.get(row) or sys.exit(f"unknown row {row}")
                out = f"{folder}/{row}"
                command = [flashlm, "data", "prepare", "--data", args.text, "--tokenizer", row, "--vocab", vocab]
                command += ["--out", out, "--threads", str(args.threads), "--json"]
                # The second time the vocabulary is there, and nothing else.
                for what in ["whole", "encode"]:
                    if what == "whole":
                        shutil.rmtree(f"{folder}/cache", ignore_errors=True)
                    shutil.rmtree(out, ignore_errors=True)
                    wall, cpu, memory, found = run(command, {"FLASHLM_CACHE": f"{folder}/cache"}, args.threads)
                    size = found["train"]["bytes"] + found["valid"]["bytes"]
                    ended = found["train"]["stories"] + found["valid"]["stories"]
                    tokens = found["train"]["tokens"] + found["valid"]["tokens"] - ended
                    told(speeds, number, f"{row}: flashlm, {what}", size / wall, size / cpu, memory, tokens)
                command = [python, __file__, "--child", "--text", args.text, "--threads", str(args.threads)]
                command += ["--tokenizer", f"{out}/tokenizer.json"] if row == "bpe" else []
                command += ["--ranks", args.ranks] if args.ranks else []
                _, cpu, memory, found = run(command, {}, args.threads)
                size = found["bytes"]
                told(speeds, number, f"{row}: tiktoken", size / found["seconds"], size / cpu, memory, found["tokens"])
    print()
    for row in args.rows.split(","):
        theirs = [statistics.median(x) for x in zip(*speeds[f"{row}: tiktoken"])]
        for what in ["whole", "encode"]:
            ours = [statistics.median(x) for x in zip(*speeds[f"{row}: flashlm, {what}"])]
            print(f"{row}: flashlm, {what} / tiktoken: {ours[0] / theirs[0]:.2f} by the clock, {ours[1] / theirs[1]:.2f} by CPU time")


def told(speeds, number, name, wall, cpu, memory, tokens):
    speeds.setdefault(name, []).append((wall, cpu))
    print(
        f"round {number + 1}  {name:26} {wall / 1e6:7.1f} MB/s  {cpu / 1e6:7.1f} MB a CPU second"
        f"  {memory:6.0f} MB resident  {tokens:,} tokens",
        flush=True,
    )


if __name__ == "__main__":
    main()
