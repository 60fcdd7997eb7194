"""FlashLM's portable models in NumPy: the formulas of `crates/model/src/mixer`, on the weights that `flashlm export safetensors` writes.

`Model(path).logits(ids)` is `[T, V]` in float64; with `int8=True` the inputs of matrices are rounded as the packed runtime does.
"""
import json
import struct

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


class Model:
    def __init__(self, path, int8=False):
        data = open(path, "rb").read()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        self.c, self.int8 = json.loads(header.pop("__metadata__")["config"]), int8
        self.w = {}
        for name, t in header.items():
            begin, end = (8 + size + at for at in t["data_offsets"])
            self.w[name] = np.frombuffer(data[begin:end], "<f4").reshape(t["shape"]).astype(np.float64)

    def norm(self, x, scale, eps=None):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + (eps or self.c["norm_eps"])) * self.w[scale]

    def rounded(self, x):
        if not self.int8:
            return x
        step = np.abs(x).max(-1, keepdims=True) / 127
        return np.round(x / np.where(step == 0, 1, step)) * step

    def linear(self, x, name):
        return self.rounded(x) @ self.w[f"{name}.weight"].T

    def conv(self, x, name):
        taps = self.w[name].reshape(x.shape[1], -1)
        k = taps.shape[1]
        x = np.concatenate([np.zeros((k - 1, x.shape[1])), x])
        return sum(x[j : len(x) - k + 1 + j] * taps[:, j] for j in range(k))

    def shortconv(self, x, at):
        b, c, v = np.split(self.linear(x, f"{at}.up"), 3, 1)
        return self.linear(c * self.conv(b * v, f"{at}.conv.weight"), f"{at}.down")

    def attention(self, x, at):
        heads, window, base = (self.c["attention"][key] for key in ("heads", "window", "rope_base"))
        (t, d), dh = x.shape, x.shape[1] // heads
        angles = np.arange(t)[:, None] * base ** (-2 * np.arange(dh // 2) / dh)
        cos, sin = (np.concatenate([f(angles)] * 2, 1)[:, None] for f in (np.cos, np.sin))

        def turned(part):
            y = self.norm(self.linear(x, f"{at}.{part}_proj").reshape(t, heads, dh), f"{at}.{part}_norm.scale", 1e-6)
            low, high = np.split(y, 2, -1)
            return y * cos + np.concatenate([-high, low], -1) * sin

        score = np.einsum("qhd,khd->hqk", turned("q"), turned("k")) / np.sqrt(dh)
        back = np.arange(t)[:, None] - np.arange(t)
        score = np.where((back >= 0) & (back < window), score, -np.inf)
        p = np.exp(score - score.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        v = self.linear(x, f"{at}.v_proj").reshape(t, heads, dh)
        return self.linear(np.einsum("hqk,khd->qhd", p, v).reshape(t, d), f"{at}.o_proj")

    def delta(self, x, at):
        c, t = self.c["delta"], len(x)
        h = c["heads"]
        q, k, v = (silu(self.conv(self.linear(x, f"{at}.{p}_proj"), f"{at}.{p}_conv.weight")).reshape(t, h, -1) for p in "qkv")
        q, k = (y / np.sqrt((y * y).sum(-1, keepdims=True) + 1e-6) for y in (q, k))
        q = q / np.sqrt(q.shape[2])
        a, b = (x @ self.w[f"{at}.{p}_proj.weight"].T for p in "ab")
        decay = np.exp(-np.exp(self.w[f"{at}.A_log"]) * np.log1p(np.exp(a + self.w[f"{at}.dt_bias"])))
        s, out = np.zeros((h, k.shape[2], v.shape[2])), []
        for i in range(t):
            s = s * decay[i][:, None, None]
            u = sigmoid(b[i])[:, None] * (v[i] - np.einsum("hkv,hk->hv", s, k[i]))
            s = s + k[i][:, :, None] * u[:, None]
            out.append(np.einsum("hkv,hk->hv", s, q[i]))
        o = self.norm(np.array(out), f"{at}.o_norm.scale", c["norm_eps"])
        gate = self.linear(x, f"{at}.g_proj").reshape(o.shape)
        return self.linear((o * silu(gate)).reshape(t, -1), f"{at}.o_proj")

    def logits(self, ids):
        c, h = self.c, self.w["embedding.weight"][np.array(ids)]
        pattern = c["pattern"] or [c["mixer"]]
        for i in range(c["blocks"]):
            x = self.norm(h, f"blocks.{i}.norm1.scale")
            h = h + getattr(self, pattern[i % len(pattern)])(x, f"blocks.{i}.mixer")
            x = self.norm(h, f"blocks.{i}.norm2.scale")
            gate, up = (self.linear(x, f"blocks.{i}.ffn.{part}") for part in ("W_gate", "W_up"))
            h = h + self.linear(silu(gate) * up, f"blocks.{i}.ffn.W_down")
        return self.rounded(self.norm(h, "final_norm.scale")) @ self.w["embedding.weight"].T

    def log_probs(self, ids):
        z = self.logits(ids)
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))
