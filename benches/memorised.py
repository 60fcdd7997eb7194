#!/usr/bin/env python3
"""How much of what a model writes stands in its training text: of each sample the longest run of words that does.

    benches/memorised.py builtin train.txt --held-out valid.txt -o memorised.svg

The model writes --samples texts without a prompt, as `flashlm generate` does by itself. For each, the longest run of consecutive
words (as white space divides them) that stands anywhere in the training text is found exactly, through an index of all runs of
five words. Documents of --held-out, which nobody learned, say how long such runs are by chance alone. The figure has both as
shares of all texts.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GRAM = 5
EDGES = [0, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200]


class Index:
    """All positions of all runs of GRAM words of a text."""

    def __init__(self, text):
        self.ids = {}
        words = text.split()
        self.words = np.array([self.ids.setdefault(word, len(self.ids)) for word in words], dtype=np.int64)
        self.order = np.argsort(keys := self.keys(self.words), kind="stable")
        self.sorted = keys[self.order]

    def keys(self, words):
        n = len(words) - GRAM + 1
        key = np.zeros(max(n, 0), dtype=np.uint64)
        for i in range(GRAM if n > 0 else 0):
            key = key * np.uint64(0x9E3779B97F4A7C15) + words[i : i + n].astype(np.uint64) + np.uint64(1)
        return key

    def longest(self, text):
        """Words of the longest run that stands in the indexed text too; runs shorter than GRAM count as 0."""
        words = np.array([self.ids.get(word, -1) for word in text.split()], dtype=np.int64)
        best = 0
        for start, key in enumerate(self.keys(words)):
            low, high = np.searchsorted(self.sorted, key, "left"), np.searchsorted(self.sorted, key, "right")
            places, length = self.order[low:high], 0
            while len(places) and start + length < len(words):
                places = places[places + length < len(self.words)]
                places = places[self.words[places + length] == words[start + length]]
                length += len(places) > 0
            # Another run may have the same key.
            best = max(best, length if length >= GRAM else 0)
        return best


def draw(rows, path):
    """Shares of texts by the length of their longest run, a colour for each row."""
    width, height, left, top = 960, 420, 60, 70
    wide = (width - left - 20) / len(EDGES)
    peak = max(max(shares) for _, shares in rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui,sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
        '<text x="24" y="34" font-size="19" font-weight="600">Longest run of words that stands in the training text</text>',
    ]
    floor = height - 70
    for i, (name, shares) in enumerate(rows):
        colour = ["#2563c9", "#b9bec7"][i]
        out.append(f'<rect x="{left + i * 260}" y="46" width="12" height="12" fill="{colour}"/>')
        out.append(f'<text x="{left + i * 260 + 18}" y="56">{name}</text>')
        for j, share in enumerate(shares):
            tall = (floor - top) * share / peak
            x = left + j * wide + 4 + i * (wide - 8) / len(rows)
            out.append(f'<rect x="{x:.1f}" y="{floor - tall:.1f}" width="{(wide - 8) / len(rows):.1f}" height="{tall:.1f}" fill="{colour}"/>')
            if share > 0:
                label = f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"
                out.append(f'<text x="{x + (wide - 8) / len(rows) / 2:.1f}" y="{floor - tall - 4:.1f}" font-size="9" text-anchor="middle">{label}</text>')
    for j, edge in enumerate(EDGES):
        out.append(f'<text x="{left + j * wide:.1f}" y="{floor + 16}" text-anchor="middle">{edge}</text>')
    out.append(f'<path d="M{left} {floor}H{width - 20}" stroke="#4b5361"/>')
    out.append(f'<text x="{width / 2}" y="{height - 24}" text-anchor="middle">words; each bar from its number to the next</text></svg>')
    Path(path).write_text("\n".join(out) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="any model that `flashlm generate` takes")
    p.add_argument("text", help="its training text, documents separated by <|endoftext|>")
    p.add_argument("--held-out", help="another text of the same kind, to compare with")
    p.add_argument("--samples", type=int, default=1000)
    p.add_argument("-o", "--output", default="memorised.svg")
    args = p.parse_args()
    flashlm = os.environ.get("FLASHLM", str(ROOT / "target/release/flashlm"))
    command = [flashlm, "generate", args.model, "--samples", str(args.samples), "-n", "400", "--json"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    texts = {f"{args.samples} samples": [json.loads(line)["text"] for line in lines]}
    if args.held_out:
        stories = Path(args.held_out).read_text().split("<|endoftext|>")
        texts["held-out documents"] = [story for story in stories if story.strip()][: args.samples]
    index = Index(Path(args.text).read_text())
    rows = []
    for name, group in texts.items():
        runs = np.array([index.longest(text) for text in group])
        shares = np.histogram(runs, EDGES + [10**9])[0] / len(runs)
        rows.append((name, shares.tolist()))
        whole = sum(run >= len(text.split()) for run, text in zip(runs, group))
        print(json.dumps({"texts": name, "median": int(np.sort(runs)[len(runs) // 2]), "p99": int(np.sort(runs)[len(runs) * 99 // 100]),
                          "longest": int(runs.max()), "wholly_in_the_text": int(whole), "from": EDGES, "shares": rows[-1][1]}))
    draw(rows, args.output)


if __name__ == "__main__":
    main()
