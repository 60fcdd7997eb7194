#!/usr/bin/env python3
"""Exports against the programs that they are for: tests/exports/check.py FLASHLM MODEL [gguf] [hf]

MODEL is a run, checkpoint or packed model of a portable preset with a lossless vocabulary. The reference is NumPy in float64 (reference.py), which
is first compared with the packed runtime. Needs NumPy; `gguf` needs the package xllamacpp, `hf` torch and transformers: without them that
part is skipped.
"""
import importlib.util
import json
import math
import random
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

if importlib.util.find_spec("numpy") is None:
    print("skipped: no Python package numpy")
    sys.exit()

import numpy as np
from reference import Model

POSITIONS, LINES = 200, 10_000
failed = False


def check(what, value, bound):
    global failed
    good = value <= bound
    failed |= not good
    print(f"{'ok ' if good else 'BAD'} {what}: {value:.3g} (at most {bound:g})", flush=True)


def run(*args):
    return subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True).stdout


def have(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: no Python package {' and '.join(missing)}")
    return not missing


def vocabulary(folder, flashlm, model):
    """The tokenizer that the export for transformers has, by the package tokenizers."""
    run(flashlm, "export", "hf", model, "-o", folder / "hf")
    config = json.loads((folder / "hf/config.json").read_text())
    return folder / "hf/tokenizer.json", config["eos_token_id"]


def lines(text):
    """Lines of words, spaces, digits, signs and other alphabets."""
    rng, words = random.Random(1), text.split()
    odd = ["  ", "\t", "1234", "3.14", "don't", "!?", "ünïcödé", "日本語", "😀", "\u00a0", "x=y*(z+1);", "’", "\r\n", "Ω", "   "]
    def line():
        return "".join(rng.choice(words if rng.random() < 0.7 else odd) + rng.choice([" ", " ", " ", ""]) for _ in range(rng.randrange(1, 12)))
    return [line() for _ in range(LINES)]


class Llama:
    """A server of llama.cpp in this process, in full precision and without caches of prompts."""

    def __init__(self, path):
        import xllamacpp as x

        p = x.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.n_gpu_layers = str(path), 1024, 1, False, 0
        p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = x.Server(p)
        self.url = self.server.listening_address

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    def log_probs(self, ids, vocab):
        """Of every token after each of `ids`."""
        rows = []
        for end in range(1, len(ids) + 1):
            body = {"prompt": ids[:end], "n_predict": 1, "n_probs": vocab, "temperature": 1.0, "cache_prompt": False}
            row = np.full(vocab, np.nan)
            for top in self.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]:
                row[top["id"]] = top["logprob"]
            rows.append(row)
        return np.array(rows)


def scored(flashlm, model, text):
    """Log-probabilities of the tokens of a text at the start of a document, by the packed runtime."""
    return json.loads(run(flashlm, "score", model, "-c", text, "--json"))["tokens"]


def main():
    flashlm, model = (Path(arg).absolute() for arg in sys.argv[1:3])
    parts = sys.argv[3:] or ["gguf", "hf"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run(flashlm, "export", "safetensors", model, "-o", folder / "model.st")
        text = run(flashlm, "data", "sample", "synthetic:40", "-n", "40", "--seed", "5")
        story = text[:1500]
        tokens = scored(flashlm, model, story)[:POSITIONS]
        file, eos = vocabulary(folder, flashlm, model)
        ids = [eos] + [token["id"] for token in tokens]
        packed = np.array([token["logprob"] for token in tokens])
        runtime = Model(folder / "model.st", int8=True).log_probs(ids[:-1])
        own = runtime[np.arange(len(tokens)), ids[1:]]
        # Sums of other order now and then round an activation to the next int8, which later tokens then see.
        check("reference in int8 against the packed runtime, median of the first 20", np.median(np.abs(own - packed)[:20]), 1e-5)
        check("the same, nats per token of all, ratio less 1", abs(own.mean() / packed.mean() - 1), 1e-3)
        reference = Model(folder / "model.st")
        want = reference.log_probs(ids)
        if "gguf" in parts and have("xllamacpp", "tokenizers"):
            gguf(flashlm, model, folder, file, ids, want, packed, text)
        if "hf" in parts and have("torch", "transformers"):
            hf(folder, ids, reference)
    sys.exit(failed)


def gguf(flashlm, model, folder, file, ids, want, packed, text):
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(file))
    for weights, bound in (("f32", 1e-4), ("f16", None), ("q4_0", None), ("q2_0", None)):
        path = folder / f"{weights}.gguf"
        run(flashlm, "export", "gguf", model, "-o", path, "--weights", weights)
        llama = Llama(path)
        got = llama.log_probs(ids, want.shape[1])
        if weights == "f32":
            check(f"gguf f32: log-probabilities after {len(ids)} positions", np.abs(got - want).max(), 1e-4)
            wrong = [line for line in lines(text) if llama.post("/tokenize", {"content": line})["tokens"] != ours.encode(line, add_special_tokens=False).ids]
            print(wrong[:3] or "", end="")
            check(f"gguf: lines of {LINES} with other tokens", len(wrong), 0)
        there = got[np.arange(len(ids) - 1), ids[1:]].mean()
        print(f"    {weights}: {path.stat().st_size} bytes, nats per token there {-there:.5f}, packed runtime {-packed.mean():.5f}")
        if weights in ("q2_0", "q4_0"):
            check(f"gguf {weights}: bits per byte against the packed runtime, ratio less 1", abs(there / packed.mean() - 1), 3e-3)


def hf(folder, ids, reference):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def logits(at):
        model = AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32).eval()
        with torch.no_grad():
            return model, model(torch.tensor([ids])).logits[0].double().numpy()

    want = reference.logits(ids)
    model, got = logits(folder / "hf")
    ratio = math.sqrt(((got - want) ** 2).sum() / (want**2).sum())
    check(f"hf {type(model).__name__}: logits after {len(ids)} positions, RMS ratio", ratio, 1e-5)
    eos = ids[0]
    with torch.no_grad():
        written = model.generate(torch.tensor([[eos]]), max_new_tokens=200, min_new_tokens=200, do_sample=False)[0].tolist()
    z = reference.logits(written[:-1])
    # min_new_tokens forbids the end of the text.
    z[:, eos] = -np.inf
    check("hf: greedy tokens of 200 that differ", sum(a != b for a, b in zip(z.argmax(-1), written[1:])), 0)
    model.save_pretrained(folder / "again")
    _, again = logits(folder / "again")
    check("hf: logits after save_pretrained and reload", np.abs(again - got).max(), 0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    check("hf: the tokenizer gives back a text", tokenizer.decode(tokenizer("Once, she said 12 ünï!\n").input_ids) != "Once, she said 12 ünï!\n", 0)


if __name__ == "__main__":
    main()
