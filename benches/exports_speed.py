#!/usr/bin/env python3
"""Speeds of a model where it is exported to, on one thread: benches/exports_speed.py FLASHLM MODEL [TURNS]

`flashlm generate` beside the C program of each compiler and instruction set, the page's engine in Node and in Chromium, ONNX Runtime, llama.cpp, and
llama2.c's run.c on weights of no meaning, by multiplies. Tokens per second are of processor time, without that of the start, the best of all turns: what
else the machine does changes them little. Skipped with a word: compilers, programs and packages that are missing (clang, node, chromium;
onnxruntime, numpy; xllamacpp), and run.c without LLAMA2C, the path of that file.
"""
import sys

del sys.path[0]  # files beside this one have names of the standard library

import importlib.util
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARNED = ["-std=c11", "-O3", "-ffp-contract=off"]
rows = []


def run(command, **more):
    """Seconds of processor time, what was told to stdout and stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run([str(a) for a in command], check=True, capture_output=True, text=True, errors="replace", **more)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, told.stdout, told.stderr


def rate(command, env=None, enough=1500):
    """Tokens per second of a program that takes the flags of `generate`, over as many texts as make `enough` tokens."""
    command = [*command, "-p", "Once upon a time", "-t", "1.5", "--top-p", "1"]
    env = {**os.environ, **(env or {})}
    start = min(run([*command, "-n", "1", "--seed", "1"], env=env)[0] for _ in range(3))
    seconds, tokens, seed = 0.0, 0, 0
    while tokens < enough:
        seed += 1
        own, _, told = run([*command, "-n", "1000", "--seed", seed], env=env)
        seconds, tokens = seconds + own - start, tokens + int(re.search(r"^(\d[\d,]*) tokens", told, re.M)[1].replace(",", "")) - 1
    return tokens / max(seconds, 1e-9)


def add(name, work, turns=1):
    try:
        best = max(work() for _ in range(turns))
        rows.append((name, best))
        print(f"  {name}: {best:,.0f}", flush=True)
    except (OSError, subprocess.CalledProcessError) as e:
        print(f"  {name}: skipped: {(getattr(e, 'stderr', None) or str(e)).strip().splitlines()[-1]}", flush=True)


def have(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        print(f"  skipped: no Python package {' and '.join(missing)}")
    return not missing


def multiplies(path):
    """Of a token, from the shapes of a model as `flashlm export safetensors` writes it: all matrices, the embedding as the head's."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    looked_up = re.compile(r"bigram|blocks\.\d+\.embedding")
    shapes = [t["shape"] for name, t in header.items() if name != "__metadata__" and not looked_up.search(name)]
    return sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)


def llama2c(folder, source):
    """Multiplies per second of run.c, with a model of about the size of v4-small."""
    dim, hidden, layers, heads, vocab, context = 192, 512, 6, 6, 4096, 512
    sizes = [vocab * dim, layers * dim, *[layers * dim * dim] * 4, layers * dim, *[layers * dim * hidden] * 3, dim, context * dim // heads]
    with open(folder / "model.bin", "wb") as file:
        file.write(struct.pack("<7i", dim, hidden, layers, heads, heads, vocab, context))
        file.write(b"".join(struct.pack("<f", 0.02 * ((i * 7919) % 101 - 50) / 50) for i in range(9973)) * (sum(sizes) // 9973 + 1))
    with open(folder / "tokenizer.bin", "wb") as file:
        file.write(struct.pack("<i", 1) + b"".join(struct.pack("<fi", 0, 1) + (b" " if i == 5 else b"a") for i in range(vocab)))
    run(["gcc", "-Ofast", "-march=native", source, "-lm", "-o", folder / "run"])
    command = [folder / "run", folder / "model.bin", "-z", folder / "tokenizer.bin", "-t", "0", "-i", "a"]
    (short, few, _), (long, many, _) = run([*command, "-n", "2"]), run([*command, "-n", "256"])
    tokens = len(many) - len(few)
    # Half of the context on average in attention, twice.
    each = layers * (4 * dim * dim + 3 * dim * hidden + 256 * dim) + vocab * dim
    return tokens * each / max(long - short, 1e-9)


def onnx(folder):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
    states = {i.name: np.zeros(i.shape, types[i.type]) for i in model.get_inputs() if i.name != "ids"}
    outputs, ids, n = [o.name for o in model.get_outputs()], 1, 0
    start = time.process_time()
    while time.process_time() - start < 1:
        logits, *new = model.run(outputs, {"ids": np.array([[ids]]), **states})
        states, ids, n = dict(zip((name.removeprefix("next.") for name in outputs[1:]), new)), int(logits[0, -1].argmax()), n + 1
    return n / (time.process_time() - start)


def llama(path):
    import urllib.request
    import xllamacpp as x

    p = x.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.n_gpu_layers = str(path), 1024, 1, False, 0
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    server = x.Server(p)
    body = json.dumps({"prompt": "Once upon a time", "n_predict": 500, "ignore_eos": True, "temperature": 0.8}).encode()
    request = urllib.request.Request(server.listening_address + "/completion", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["timings"]["predicted_per_second"]


def main():
    flashlm, model, turns = Path(sys.argv[1]).absolute(), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        export = lambda format, to, *more: run([flashlm, "export", format, model, "-o", folder / to, *more])
        export("safetensors", "model.st"), export("c", "story.c"), export("web", "story.html")
        each = multiplies(folder / "model.st")
        print(f"tokens per second of {model} on one thread, {each / 1e6:.2f} M multiplies per token:")
        generate = [flashlm, "generate", model, "--threads", "1"]
        ways = [("generate", generate, {}), ("generate, AVX2", generate, {"FLASHLM_ISA": "avx2"}), ("generate, scalar", generate, {"FLASHLM_ISA": "scalar"})]
        clang = shutil.which("clang") or shutil.which("clang-19") or "clang"
        for name, compiler, flags in (("gcc, native", "gcc", ["-march=native"]), ("gcc, AVX2", "gcc", ["-mavx2"]), ("gcc, SSE2", "gcc", []), ("gcc, plain", "gcc", ["-DSTORY_PLAIN"]), ("clang, native", clang, ["-march=native"])):
            program = folder / name.replace(", ", "-")
            try:
                run([compiler, *WARNED, *flags, folder / "story.c", "-o", program])
                ways.append((f"C, {name}", [program], {}))
            except (OSError, subprocess.CalledProcessError):
                print(f"  C, {name}: skipped, no such compiler")
        best = {}
        for _ in range(turns):
            for name, command, env in ways:
                best[name] = max(best.get(name, 0), rate(command, env))
        for name, value in best.items():
            rows.append((name, value))
            print(f"  {name}: {value:,.0f}")
        print(f"  C with AVX2 {best['C, gcc, AVX2'] / best['generate, AVX2']:.2f} of generate, plain C {best['C, gcc, plain'] / best['generate, scalar']:.2f} of scalar")
        request = json.dumps({"prompt": "Once", "tokens": 1000, "seed": "1", "temperature": 1.5, "topK": 0, "topP": 1, "minP": 0, "more": 30})
        try:
            told = [run(["node", ROOT / "tests/web/engine.mjs", folder / "story.html", request])[2] for _ in range(turns)]
            print(f"  wasm in Node: {max(int(n) for n in re.findall(r'([0-9]+) tokens per second', ' '.join(told))):,}")
            told = run(["node", "--experimental-websocket", ROOT / "tests/web/page.mjs", folder / "story.html", flashlm, model])[1]
            print("  page in Chromium:", "; ".join(line for line in told.splitlines() if "seed 42" in line or "ready" in line))
        except (OSError, subprocess.CalledProcessError) as e:
            print(f"  WebAssembly: skipped: {(getattr(e, 'stderr', None) or str(e)).strip()[-300:]}")
        if have("numpy", "onnxruntime"):
            for weights in ("f32", "int8", "int2"):
                add(f"ONNX Runtime, {weights}", lambda: (export("onnx", f"onnx-{weights}", "--weights", weights), onnx(folder / f"onnx-{weights}"))[1])
        if have("xllamacpp"):
            for weights in ("q2_0", "q4_0", "f32"):
                add(f"llama.cpp, {weights}", lambda: (export("gguf", f"{weights}.gguf", "--weights", weights), llama(folder / f"{weights}.gguf"))[1])
        if source := os.environ.get("LLAMA2C"):
            peer, own = max(llama2c(folder, source) for _ in range(turns)), best["C, gcc, native"] * each
            print(f"  multiplies a second: C {own / 1e9:.1f} G, llama2.c's run.c (f32, -Ofast) {peer / 1e9:.1f} G: {own / peer:.1f} times")
        else:
            print("  run.c: skipped, LLAMA2C is not set to its path")


if __name__ == "__main__":
    main()
