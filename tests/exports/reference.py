"""FlashLM's models in NumPy: the formulas of `crates/model/src/mixer`, on the weights that `flashlm export safetensors` writes.

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
        if scale not in self.w:
            return x
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + (eps or self.c["norm_eps"])) * self.w[scale]

    def rounded(self, x):
        if not self.int8:
            return x
        step = np.abs(x).max(-1, keepdims=True) / 127
        return np.round(x / np.where(step == 0, 1, step)) * step

    def linear(self, x, name):
        return self.rounded(self.norm(x, f"{name}.norm.scale")) @ self.w[f"{name}.weight"].T

    def conv(self, x, name):
        taps = self.w[name].reshape(x.shape[1], -1)
        k = taps.shape[1]
        x = np.concatenate([np.zeros((k - 1, x.shape[1])), x])
        return sum(x[j : len(x) - k + 1 + j] * taps[:, j] for j in range(k))

    def shortconv(self, x, at):
        b, c, v = np.split(self.linear(x, f"{at}.up"), 3, 1)
        return self.linear(c * self.conv(b * v, f"{at}.conv.weight"), f"{at}.down")

    def gated(self, x, at):
        g, v = np.split(self.linear(x, f"{at}.up"), 2, 1)
        return self.linear(self.conv(v, f"{at}.conv.weight") * sigmoid(g), f"{at}.down")

    def leaky(self, x, at):
        a, v, s, out = sigmoid(self.w[f"{at}.decay"]), self.linear(x, f"{at}.up"), 0, []
        for row in v:
            s = a * s + (1 - a) * row
            out.append(s)
        return self.linear(np.array(out), f"{at}.down")

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
        h, published = c["heads"], c["form"] == "published"
        q, k, v = (silu(self.conv(self.linear(x, f"{at}.{p}_proj"), f"{at}.{p}_conv.weight")).reshape(t, h, -1) for p in "qkv")
        q, k = (y / np.sqrt((y * y).sum(-1, keepdims=True) + (1e-6 if published else 1e-24)) for y in (q, k))
        if published:
            q = q / np.sqrt(q.shape[2])
            a, b = (x @ self.w[f"{at}.{p}_proj.weight"].T for p in "ab")
            decay = np.exp(-np.exp(self.w[f"{at}.A_log"]) * np.log1p(np.exp(a + self.w[f"{at}.dt_bias"])))
        else:
            a, b = (self.linear(x, f"{at}.{p}_proj") for p in ("gk", "beta"))
            decay = np.exp(-np.log1p(np.exp(-a)) / 16)
        beta = sigmoid(b) * (2 if c["negative_eigenvalues"] else 1)
        s, out = np.zeros((h, k.shape[2], v.shape[2])), []
        for i in range(t):
            decayed = s * decay[i][:, None, None]
            u = beta[i][:, None] * (v[i] - np.einsum("hkv,hk->hv", decayed if c["rule"] == "canonical" else s, k[i]))
            s = decayed + k[i][:, :, None] * u[:, None]
            out.append(np.einsum("hkv,hk->hv", s, q[i]))
        o = self.norm(np.array(out), f"{at}.o_norm.scale", c["norm_eps"])
        gate = self.linear(x, f"{at}.g_proj").reshape(o.shape)
        return self.linear((o * (silu if published else sigmoid)(gate)).reshape(t, -1), f"{at}.o_proj")

    def bigrams(self, ids):
        """`lowbias32` of two tokens, as a row of the table."""
        x = (np.array([self.c["eos"], *ids[:-1]], np.uint64) << 16) | np.array(ids, np.uint64)
        for shift, by in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = (x ^ (x >> shift)) * by % 2**32
        return x * self.c["bigram"] >> 32

    def document(self, ids):
        c, h = self.c, self.w["embedding.weight"][np.array(ids)]
        if c["bigram"]:
            h = h + self.w["bigram.weight"][self.bigrams(ids)]
        x0, pattern = h, c["pattern"] or [c["mixer"]]
        for i in range(c["blocks"]):
            block = f"blocks.{i}"
            if c["x0"]:
                h = self.w[f"{block}.resid_lambda"] * h + self.w[f"{block}.x0_lambda"] * x0
            if c["layer_embeddings"]:
                h = h + self.w[f"{block}.embedding.weight"][np.array(ids)]
            mixer = {"conv": "gated"}.get(pattern[i % len(pattern)], pattern[i % len(pattern)])
            h = h + getattr(self, mixer)(self.norm(h, f"{block}.norm1.scale"), f"{block}.mixer")
            x = self.norm(h, f"{block}.norm2.scale")
            gate, up = (self.linear(x, f"{block}.ffn.{part}") for part in ("W_gate", "W_up"))
            act = silu if c["activation"] == "silu" else lambda g: np.maximum(g, 0) ** 2
            h = h + self.linear(act(gate) * up, f"{block}.ffn.W_down")
        x = self.norm(h, "final_norm.scale")
        z, cap = self.linear(x, "embedding"), c["logit_softcap"]
        z = cap * np.tanh(z / cap) if cap else z
        return self.pointed(z, x, ids) if c["pointer"] else z

    def pointed(self, z, x, ids):
        """With the masses of the tokens after the last rows."""
        keys, scale, bias = x + x @ self.w["pointer.key.weight"].T, self.w["pointer.scale"], self.w["pointer.bias"]
        mass, ids, v = np.exp(z), np.array(ids), z.shape[1]
        words = self.c.get("pointer_words")
        twin, opens = (self.w[f"pointer.{name}"].astype(int) for name in ("twin", "opens")) if words else (np.arange(v), np.zeros(v, int))
        for t in range(1, len(ids)):
            seen = np.arange(max(0, t - self.c["pointer"]), t)
            s = keys[seen] @ x[t] * scale / np.sqrt(x.shape[1]) + bias
            after = np.where(opens[ids[seen]] == opens[ids[t]], ids[seen + 1], twin[ids[seen + 1]])
            np.add.at(mass[t], after, np.exp(s))
        return np.log(mass)

    def logits(self, ids):
        starts = [0] + [i for i, token in enumerate(ids) if i and token == self.c["eos"] and self.c["reset"]] + [len(ids)]
        return np.concatenate([self.document(ids[a:b]) for a, b in zip(starts, starts[1:])])

    def log_probs(self, ids):
        z = self.logits(ids)
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))
