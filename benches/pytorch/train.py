"""Trains a FlashLM v4 in PyTorch for a fixed time and scores it in bits per byte.

    python train.py --train FILE --valid FILE --tokenizer FREQUENCY_JSON --minutes 10
    python train.py --tokens-train FILE --tokens-valid FILE --valid FILE --tokenizer FREQUENCY_JSON --minutes 10

Token files are raw little-endian u16, each story ended by EOS = 3. Schedule: linear warm-up, then cosine to 1e-5
over elapsed / limit. The curve goes to stderr, one JSON object to stdout.
BPB = nats over story tokens / (ln 2 * UTF-8 bytes of the stories); every story starts from EOS and is scored whole.
"""

import argparse
import json
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from v4 import MODES, PRESETS, Config, Model, make_loss, make_optimizer, train_step

UNK, EOS = 1, 3
SPECIALS = 4
GPT2_IDS = 50257
WARMUP_STEPS, WARMUP_SHARE = 500, 0.1
LR_FLOOR = 1e-5
EVAL_TOKENS = 8192  # padded positions of one evaluation batch; bounds the logits


def stories_of(path: Path) -> list[str]:
    """Stories stand between lines `<|endoftext|>`; newlines around a story are not part of it."""
    text = path.read_bytes().decode("utf-8")
    stories = (s.strip("\r\n") for s in re.split(r"^<\|endoftext\|>\r?$", text, flags=re.MULTILINE))
    return [s for s in stories if s]


def encode(stories: list[str], base_to_id: dict[int, int]) -> np.ndarray:
    import tiktoken

    try:
        gpt2 = tiktoken.get_encoding("r50k_base")
    except Exception as error:
        sys.exit(
            f"the GPT-2 ranks of tiktoken are not on this machine ({type(error).__name__}): "
            "set TIKTOKEN_CACHE_DIR to a folder that has them, or give --tokens-train and --tokens-valid"
        )
    ids = np.full(gpt2.n_vocab, UNK, np.uint16)
    for base, own in base_to_id.items():
        ids[base] = own
    parts = []
    for story in stories:
        parts += [ids[gpt2.encode_ordinary(story)], np.array([EOS], np.uint16)]
    return np.concatenate(parts)


def split_stories(tokens: np.ndarray) -> list[np.ndarray]:
    """Each story with its EOS."""
    ends = np.flatnonzero(tokens == EOS) + 1
    if len(ends) == 0 or ends[-1] != len(tokens):
        sys.exit("the token file does not end with EOS = 3")
    return np.split(tokens, ends[:-1])


def learning_rate(step: int, share: float, peak: float, warm: dict) -> float:
    """`step` counts from 1; `share` is elapsed / limit. `warm["end"]` keeps the share at which warm-up ended."""
    if "end" not in warm:
        ramp = max(step / WARMUP_STEPS, share / WARMUP_SHARE)
        if ramp < 1:
            return peak * ramp
        warm["end"] = share
    done = min(1.0, (share - warm["end"]) / max(1e-9, 1 - warm["end"]))
    return LR_FLOOR + 0.5 * (peak - LR_FLOOR) * (1 + math.cos(math.pi * done))


def batches(tokens: np.ndarray, seq: int, batch: int, seed: int):
    """Endless (x, y) from windows of T+1 tokens that do not overlap, in a new order each epoch."""
    count = len(tokens) // (seq + 1)
    if count < batch:
        sys.exit(f"{len(tokens)} training tokens make {count} windows, fewer than one batch of {batch}")
    windows = torch.from_numpy(tokens[: count * (seq + 1)].astype(np.int32)).view(count, seq + 1)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        for at in range(0, count - batch + 1, batch):
            w = windows[order[at : at + batch]].long()
            yield w[:, :-1].contiguous(), w[:, 1:].contiguous()


@torch.no_grad()
def evaluate(model: Model, stories: list[np.ndarray], text_bytes: int, unk_bases: int) -> dict:
    """`stories` end with EOS. An UNK also pays for spelling the lost token among `unk_bases`."""
    model.eval()
    order = sorted(stories, key=len)
    nats = eos_nats = 0.0
    tokens = unks = at = 0
    while at < len(order):
        rows = 1
        while at + rows < len(order) and (rows + 1) * len(order[at + rows]) <= EVAL_TOKENS:
            rows += 1
        group = order[at : at + rows]
        at += rows
        width = len(group[-1])
        # Padding stands on the right, where a causal model cannot see it; -1 targets are not scored.
        x = torch.full((rows, width), EOS)
        y = torch.full((rows, width), -1)
        for row, story in enumerate(group):
            ids = torch.from_numpy(story.astype(np.int64))
            x[row, 1 : len(ids)] = ids[:-1]
            y[row, : len(ids)] = ids
        losses = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none", ignore_index=-1)
        losses, y = losses.double(), y.flatten()
        nats += losses[y != EOS].sum().item()
        eos_nats += losses[y == EOS].sum().item()
        tokens += ((y >= 0) & (y != EOS)).sum().item()
        unks += (y == UNK).sum().item()
    charged = nats + (unks * math.log(unk_bases) if unks else 0.0)
    bits = math.log(2) * text_bytes
    return {
        "bpb": charged / bits,
        "bpb_with_eos": (charged + eos_nats) / bits,
        "loss_per_token": nats / tokens,
        "bytes_per_token": text_bytes / tokens,
        "valid_stories": len(stories),
        "valid_tokens": tokens,
        "valid_bytes": text_bytes,
        "unk": unks,
        "unk_bases": unk_bases,
    }


def train(model: Model, tokens: np.ndarray, args) -> dict:
    loss_fn, optimizer = make_loss(model, args.mode), make_optimizer(model, args.lr, args.mode)
    feed = batches(tokens, args.seq, args.batch, args.seed)
    if args.mode == "compile":
        # Compilation is paid once whatever the length of the run, so it is kept out of the clock.
        x, y = next(feed)
        loss_fn(x, y)[0].backward()
    limit, warm, step, since = args.minutes * 60, {}, 0, 0
    start = shown = time.perf_counter()
    losses = []
    while (elapsed := time.perf_counter() - start) < limit:
        step += 1
        lr = learning_rate(step, elapsed / limit, args.lr, warm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, _ = train_step(model, loss_fn, optimizer, *next(feed))
        losses.append(loss.item())
        now = time.perf_counter()
        if now - shown >= min(10.0, limit / 20):
            rate = (step - since) * args.batch * args.seq / (now - shown)
            mean = sum(losses) / len(losses)
            print(
                f"step {step} time {now - start:.0f}s tokens {step * args.batch * args.seq} "
                f"loss {mean:.4f} lr {lr:.2e} tokens/s {rate:.0f}",
                file=sys.stderr,
            )
            shown, since, losses = now, step, []
    seconds = time.perf_counter() - start
    seen = step * args.batch * args.seq
    return {"steps": step, "seconds": seconds, "tokens_seen": seen, "tokens_per_second": seen / seconds}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--train", type=Path, help="training text, unless --tokens-train is given")
    p.add_argument("--valid", type=Path, required=True, help="validation text; its bytes are the divisor")
    p.add_argument("--tokenizer", type=Path, required=True, help="frequency vocabulary, JSON")
    p.add_argument("--tokens-train", type=Path, help="raw little-endian u16 tokens")
    p.add_argument("--tokens-valid", type=Path, help="raw little-endian u16 tokens of --valid")
    p.add_argument("--preset", choices=PRESETS, default="v4-small")
    p.add_argument("--minutes", type=float, default=10)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument("--seed", type=int, default=42)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--mode", choices=MODES, default="eager")
    p.add_argument("--json", type=Path, help="also write the result to this file")
    p.add_argument("--save", type=Path, help="write the weights to this file, as `flashlm eval` reads them (.pt)")
    args = p.parse_args()
    if (args.tokens_train is None) != (args.tokens_valid is None):
        p.error("--tokens-train and --tokens-valid go together")
    if args.tokens_train is None and args.train is None:
        p.error("give --train, or --tokens-train and --tokens-valid")
    return args


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    vocabulary = json.loads(args.tokenizer.read_text(encoding="utf-8"))
    base_to_id = {int(base): own for base, own in vocabulary["base_to_id"].items()}
    # A vocabulary built from little text has fewer than vocab_size - 4 base ids.
    unk_bases = GPT2_IDS - len(base_to_id)
    assert len(base_to_id) <= vocabulary["vocab_size"] - SPECIALS

    texts = stories_of(args.valid)
    if args.tokens_train:
        train_tokens = np.fromfile(args.tokens_train, "<u2")
        valid_tokens = np.fromfile(args.tokens_valid, "<u2")
    else:
        train_tokens = encode(stories_of(args.train), base_to_id)
        valid_tokens = encode(texts, base_to_id)
    valid = split_stories(valid_tokens)
    if len(valid) != len(texts):
        sys.exit(f"{args.valid} has {len(texts)} stories, its tokens have {len(valid)}")
    for tokens in (train_tokens, valid_tokens):
        if tokens.max() >= vocabulary["vocab_size"]:
            sys.exit(f"token {tokens.max()} is outside the vocabulary of {vocabulary['vocab_size']}")

    cfg: Config = replace(PRESETS[args.preset], vocab=vocabulary["vocab_size"])
    model = Model(cfg)
    result = {
        "preset": args.preset,
        "mode": args.mode,
        "threads": args.threads,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(train_tokens),
    }
    result |= train(model, train_tokens, args)
    if args.save:
        torch.save(model.state_dict(), args.save)
    text_bytes = sum(len(s.encode("utf-8")) for s in texts)
    result |= evaluate(model, valid, text_bytes, unk_bases)
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
