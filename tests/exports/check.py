#!/usr/bin/env python3
"""Exports against the programs that they are for: tests/exports/check.py FLASHLM MODEL [onnx] [gguf] [hf]

MODEL is a run, checkpoint or packed model. The reference is NumPy in float64 (reference.py), which is first compared with the packed runtime.
Needs NumPy; `onnx` needs the packages onnx and onnxruntime, and for Node onnxruntime-node below NODE_PATH; `gguf` xllamacpp and tokenizers, `hf`
torch and transformers: without them, and where a format refuses the model, that part is skipped.
"""
import ctypes
import importlib.util
import json
import math
import random
import subprocess
import sys
import tempfile
import time
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


def exported(flashlm, format, model, path, *more):
    """Whether the format can say the model."""
    told = subprocess.run([str(a) for a in (flashlm, "export", format, model, "-o", path, *more)], capture_output=True, text=True)
    refused = told.returncode == 1 and (format == "gguf" or "int2" in more)
    if refused:
        print(f"skipped: {told.stderr.strip()}")
    elif told.returncode:
        sys.exit(f"flashlm export {format} fails: {told.stderr.strip()}")
    return not refused


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
    parts = sys.argv[3:] or ["onnx", "gguf", "hf"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run(flashlm, "export", "safetensors", model, "-o", folder / "model.st")
        text = run(flashlm, "data", "sample", "synthetic:40", "-n", "40", "--seed", "5")
        tokens = scored(flashlm, model, text[:6000])[:511]
        reference, runtime = Model(folder / "model.st"), Model(folder / "model.st", int8=True)
        ids = [reference.c["eos"]] + [token["id"] for token in tokens]
        packed = np.array([token["logprob"] for token in tokens])
        # Sums of other order now and then round an activation to the next int8, which later tokens then see.
        close("reference in int8", runtime.log_probs(ids[:-1])[np.arange(len(tokens)), ids[1:]], packed)
        if "onnx" in parts and have("onnx", "onnxruntime") and exported(flashlm, "onnx", model, folder / "onnx"):
            onnx(flashlm, model, folder, ids, reference, packed)
        ids, packed = ids[: POSITIONS + 1], packed[:POSITIONS]
        if "gguf" in parts and have("xllamacpp", "tokenizers") and exported(flashlm, "gguf", model, folder / "f32.gguf", "--weights", "f32"):
            gguf(flashlm, model, folder, ids, reference.log_probs(ids), packed, text)
        if "hf" in parts and have("torch", "transformers") and exported(flashlm, "hf", model, folder / "hf"):
            hf(folder, ids, reference, text[:6000])
    sys.exit(failed)


def close(what, own, packed, bound=1e-5):
    check(f"{what} against the packed runtime, median of the first 20", np.median(np.abs(own - packed)[:20]), bound)
    check("the same, nats per token of all, ratio less 1", abs(own.mean() / packed.mean() - 1), 1e-3)


def ratio(got, want):
    return math.sqrt(((got - want) ** 2).sum() / (want**2).sum())


def greedy(what, written, reference, never=None):
    """Tokens, EOS first, that are not the likeliest by the reference."""
    z = reference.logits(written[:-1])
    if never is not None:
        z[:, never] = -np.inf
    check(f"{what}: greedy tokens of {len(written) - 1} that differ", sum(a != b for a, b in zip(z.argmax(-1), written[1:])), 0)


class Session:
    """A sequence in onnxruntime."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = onnxruntime.InferenceSession(str(path), options)
        types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
        self.states = {i.name: np.zeros(i.shape, types[i.type]) for i in self.model.get_inputs() if i.name != "ids"}

    def logits(self, ids):
        outputs = [o.name for o in self.model.get_outputs()]
        logits, *new = self.model.run(outputs, {"ids": np.array([ids]), **self.states})
        self.states = {name.removeprefix("next."): state for name, state in zip(outputs[1:], new)}
        return logits[0]


def onnx(flashlm, model, folder, ids, reference, packed):
    import onnx as package

    # A second document begins in the middle.
    mixed = ids[:300] + ids[:212]
    want, (f32, int8) = reference.logits(mixed), (folder / "onnx/model.onnx", folder / "int8/model.onnx")
    package.checker.check_model(str(f32), full_check=True)
    once, turns = Session(f32), Session(f32)
    check(f"onnx: logits of {len(mixed)} tokens at once, RMS ratio", ratio(once.logits(mixed), want), 1e-4)
    check("onnx: the same token by token", ratio(np.concatenate([turns.logits([token]) for token in mixed]), want), 1e-4)
    written, session = ids[:1], Session(f32)
    while len(written) <= 200:
        written.append(int(session.logits(written[-1:])[-1].argmax()))
    greedy("onnx", written, reference)
    node = ["node", Path(__file__).with_name("onnx.cjs"), f32, ids[0], 200]
    try:
        there = json.loads(subprocess.run([str(a) for a in node], check=True, capture_output=True, text=True).stdout)
        check("onnx: tokens that onnxruntime-node writes otherwise", sum(a != b for a, b in zip(there, written[1:])), 0)
    except (OSError, subprocess.CalledProcessError):
        print("skipped: no node, or no npm package onnxruntime-node below NODE_PATH")
    run(flashlm, "export", "onnx", model, "-o", folder / "int8", "--weights", "int8")
    package.checker.check_model(str(int8), full_check=True)
    z = Session(int8).logits(ids[:-1]).astype(np.float64)
    z -= z.max(-1, keepdims=True)
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    # The runtime's own logarithms are of f32.
    off = np.abs(z[np.arange(len(packed)), ids[1:]] - packed)
    check(f"onnx int8: log-probabilities of {len(off)} tokens against the packed runtime, the largest difference", off.max(), 3e-6)
    bits(flashlm, model, folder, int8)
    if exported(flashlm, "onnx", model, folder / "int2", "--weights", "int2"):
        int2 = folder / "int2/model.onnx"
        package.checker.check_model(str(int2), full_check=True)
        once, turns = Session(int2), Session(int2)
        check(f"onnx int2: logits of {len(mixed)} tokens at once, RMS ratio", ratio(once.logits(mixed), want), 1e-4)
        check("onnx int2: the same token by token", ratio(np.concatenate([turns.logits([token]) for token in mixed]), want), 1e-4)
    long = (ids * 20)[:4096]
    once, turns = Session(f32), Session(f32)
    pieces = np.concatenate([turns.logits(long[i : i + 256]) for i in range(0, len(long), 256)])
    check(f"onnx: {len(long)} tokens at once against pieces of 256, RMS ratio", ratio(once.logits(long), pieces), 1e-5)
    for path in (path for path in (f32, int8, folder / "int2/model.onnx") if path.exists()):
        session, n, started = Session(path), 0, time.perf_counter()
        while time.perf_counter() - started < 1:
            session.logits([ids[n % len(ids)]])
            n += 1
        print(f"    {path.parent.name}: {path.stat().st_size} bytes, {n} tokens/s")
    example = run(sys.executable, folder / "onnx/generate.py", "Once upon a time")
    check("onnx: the example writes on", not (example.startswith("Once upon a time") and len(example) > 40), 0)


def bits(flashlm, model, folder, path):
    """Logits of the packed runtime, as its C export has them, along a text that it draws: token by token, and in pieces of 100."""
    run(flashlm, "export", "c", model, "-o", folder / "story.c")
    try:
        run("cc", "-std=c11", "-O2", "-shared", "-fPIC", "-DSTORY_NO_MAIN", "-DSTORY_API=", "-ffp-contract=off", folder / "story.c", "-o", folder / "story.so")
    except OSError:
        print("skipped: no C compiler (cc)")
        return
    class Settings(ctypes.Structure):
        _fields_ = [("temperature", ctypes.c_float), ("top_k", ctypes.c_uint32), ("top_p", ctypes.c_float), ("min_p", ctypes.c_float)]

    c, size = ctypes.CDLL(str(folder / "story.so")), ctypes.c_size_t()
    c.story_model.restype = c.story_init.restype = ctypes.c_void_p
    c.story_size.restype, c.story_logits.restype = ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)
    at = ctypes.c_void_p(c.story_model(ctypes.byref(size)))
    memory = ctypes.create_string_buffer(c.story_size(at, size) + 64)
    story = ctypes.c_void_p(c.story_init(ctypes.c_void_p((ctypes.addressof(memory) + 63) // 64 * 64), at, size))
    c.story_reset(story, ctypes.c_uint64(1))
    tokens, want = [c.story_eos(story)], []
    for _ in range(512):
        want.append(np.ctypeslib.as_array(c.story_logits(story), (c.story_vocab(story),)).copy())
        tokens.append(c.story_sample(story, ctypes.byref(Settings(1.0, 0, 1.0, 0.0))))
    turns, pieces = Session(path), Session(path)
    got = np.concatenate([turns.logits([token]) for token in tokens[:-1]])
    check(f"onnx int8: logits of {len(want)} tokens that are not the runtime's to the bit", (got != np.array(want)).any(-1).sum(), 0)
    got = np.concatenate([pieces.logits(tokens[i : min(i + 100, len(want))]) for i in range(0, len(want), 100)])
    check("onnx int8: the same in pieces of 100", (got != np.array(want)).any(-1).sum(), 0)


def gguf(flashlm, model, folder, ids, want, packed, text):
    from tokenizers import Tokenizer

    run(flashlm, "export", "onnx", model, "-o", folder / "tokenizer")
    ours = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    for weights in ("f32", "f16", "q4_0", "q2_0"):
        path = folder / f"{weights}.gguf"
        if not exported(flashlm, "gguf", model, path, "--weights", weights, "--force"):
            continue
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


def hf(folder, ids, reference, text):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def logits(at):
        model = AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32, trust_remote_code=True).eval()
        with torch.no_grad():
            return model, model(torch.tensor([ids])).logits[0].double().numpy()

    want = reference.logits(ids)
    model, got = logits(folder / "hf")
    check(f"hf {type(model).__name__}: logits after {len(ids)} positions, RMS ratio", ratio(got, want), 1e-5)
    eos = ids[0]
    with torch.no_grad():
        written = model.generate(torch.tensor([[eos]]), max_new_tokens=200, min_new_tokens=200, do_sample=False)[0].tolist()
    # min_new_tokens forbids the end of the text.
    greedy("hf", written, reference, eos)
    model.save_pretrained(folder / "again")
    _, again = logits(folder / "again")
    check("hf: logits after save_pretrained and reload", np.abs(again - got).max(), 0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf", trust_remote_code=True)
    tokenizer.save_pretrained(folder / "again")
    for what, own in (("", tokenizer), (" after reload", AutoTokenizer.from_pretrained(folder / "again", trust_remote_code=True))):
        there = own(text).input_ids[: len(ids) - 1]
        check(f"hf: tokens of {len(there)} that are others{what}", sum(a != b for a, b in zip(there, ids[1:])), 0)
    print(f"    it writes: {tokenizer.decode(written[1:40])!r}")


if __name__ == "__main__":
    main()
