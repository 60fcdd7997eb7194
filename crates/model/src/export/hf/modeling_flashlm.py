"""FlashLM in PyTorch: h = E[tokens]; in each block h += mixer(norm(h)), h += GLU(norm(h)); logits = norm(h) E^T.

Shapes: B sequences, T tokens, D = dim. `past: [B, T]` is the number of tokens of a token's document before it, which says what a mixer may see.
Every mixer is called as `mixer(x, past, state)` and gives the branch and its next state; no state is that of a text that begins.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_flashlm import FlashLMConfig


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale"""

    def __init__(self, width, eps):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.scale


class Linear(nn.Linear):
    """x W^T without a bias, with a norm before it where there is one."""

    def __init__(self, c, inputs, outputs, last=False):
        super().__init__(inputs, outputs, bias=False)
        self.norm = Norm(inputs, c.norm_eps) if c.matrix_norm or (last and c.sub_norm) else nn.Identity()

    def forward(self, x):
        return super().forward(self.norm(x))


class Taps(nn.Module):
    """Causal depthwise convolution over the rows of a document; the last tap is the current row's. The state is the last K - 1 rows."""

    def __init__(self, channels, k):
        super().__init__()
        self.weight, self.k = nn.Parameter(torch.randn(channels, 1, k) / k**0.5), k

    def forward(self, x, past, state):
        before = x.new_zeros(x.shape[0], self.k - 1, x.shape[2]) if state is None else state
        rows = torch.cat([before, x], 1)
        seen = past[..., None] >= torch.arange(self.k - 1, -1, -1, device=x.device)
        y = (rows.unfold(1, self.k, 1) * self.weight[:, 0] * seen[:, :, None]).sum(-1)
        return y, rows[:, x.shape[1] :]


class Conv(nn.Module):
    """[g, v] = up(x); down(taps(v) * sigmoid(g))"""

    def __init__(self, c):
        super().__init__()
        self.up, self.conv, self.down = Linear(c, c.dim, 2 * c.dim), Taps(c.dim, c.kernel_size), Linear(c, c.dim, c.dim, last=True)

    def forward(self, x, past, state):
        g, v = self.up(x).chunk(2, -1)
        y, state = self.conv(v, past, state)
        return self.down(y * g.sigmoid()), state


class ShortConv(nn.Module):
    """[b, c, v] = up(x); down(c * taps(b * v))"""

    def __init__(self, c):
        super().__init__()
        self.up, self.conv = Linear(c, c.dim, 3 * c.dim), Taps(c.dim, c.shortconv["kernel_size"])
        self.down = Linear(c, c.dim, c.dim, last=True)

    def forward(self, x, past, state):
        b, c, v = self.up(x).chunk(3, -1)
        y, state = self.conv(b * v, past, state)
        return self.down(c * y), state


class Leaky(nn.Module):
    """v = up(x); s = a s + (1 - a) v with a = sigmoid(decay); down(s)"""

    def __init__(self, c):
        super().__init__()
        self.up, self.decay, self.down = Linear(c, c.dim, c.dim), nn.Parameter(torch.zeros(c.dim)), Linear(c, c.dim, c.dim, last=True)

    def forward(self, x, past, state):
        a, v, out = self.decay.sigmoid(), self.up(x), []
        s = torch.zeros_like(v[:, 0]) if state is None else state
        for t in range(x.shape[1]):
            s = a * s * (past[:, t] > 0)[:, None] + (1 - a) * v[:, t]
            out.append(s)
        return self.down(torch.stack(out, 1)), s


class Attention(nn.Module):
    """Causal attention with rotated, normed queries and keys; a row sees at most `window` rows, itself included. The state is
    the last keys and values."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.window, base = (c.attention[key] for key in ("heads", "window", "rope_base"))
        width = c.dim // self.heads
        self.q_proj, self.k_proj, self.v_proj = (Linear(c, c.dim, c.dim) for _ in range(3))
        self.q_norm, self.k_norm, self.o_proj = Norm(width, 1e-6), Norm(width, 1e-6), Linear(c, c.dim, c.dim, last=True)
        self.rates = [base ** (-2 * i / width) for i in range(width // 2)]

    def turned(self, x, past):
        angles = past[:, None, :, None].double() * torch.tensor(self.rates, dtype=torch.float64, device=x.device)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        low, high = x.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    def forward(self, x, past, state):
        by_heads = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, width]
        q = self.turned(self.q_norm(by_heads(self.q_proj(x))), past)
        k = self.turned(self.k_norm(by_heads(self.k_proj(x))), past)
        v = by_heads(self.v_proj(x))
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        t, rows = x.shape[1], k.shape[2]
        back = torch.arange(rows - t, rows, device=x.device)[:, None] - torch.arange(rows, device=x.device)
        seen = (back >= 0) & (back < self.window) & (back <= past[..., None])
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        kept = max(0, rows - self.window + 1)
        return self.o_proj(o.transpose(1, 2).flatten(2)), (k[:, :, kept:], v[:, :, kept:])


class Delta(nn.Module):
    """Gated delta rule (arXiv 2412.06464): per head a state S [dk, dv] that a gate decays and an error corrects, row by row."""

    def __init__(self, c):
        super().__init__()
        self.c, self.published, self.heads, k = c.delta, c.delta["form"] == "published", c.delta["heads"], c.delta["conv"]
        keys, values = (round(c.delta[name] * c.dim) for name in ("expand_k", "expand_v"))
        self.dk, self.dv = keys // self.heads, values // self.heads
        self.q_proj, self.k_proj, self.v_proj, self.g_proj = (Linear(c, c.dim, n) for n in (keys, keys, values, values))
        self.q_conv, self.k_conv, self.v_conv = Taps(keys, k), Taps(keys, k), Taps(values, k)
        self.o_proj = Linear(c, values, c.dim, last=True)
        if self.published:
            self.a_proj, self.b_proj = (nn.Linear(c.dim, self.heads, bias=False) for _ in range(2))
            self.A_log, self.dt_bias = nn.Parameter(torch.zeros(self.heads)), nn.Parameter(torch.zeros(self.heads))
            self.o_norm = Norm(self.dv, c.delta["norm_eps"])
        else:
            self.gk_proj, self.beta_proj = Linear(c, c.dim, self.heads), Linear(c, c.dim, self.heads)

    def forward(self, x, past, state):
        *convolved, s = (None, None, None, x.new_zeros(x.shape[0], self.heads, self.dk, self.dv)) if state is None else state
        parts, kept = [], []
        for project, conv, before in zip((self.q_proj, self.k_proj, self.v_proj), (self.q_conv, self.k_conv, self.v_conv), convolved):
            y, after = conv(project(x), past, before)
            parts.append(F.silu(y).unflatten(-1, (self.heads, -1)))  # [B, T, H, dk or dv]
            kept.append(after)
        q, k, v = parts
        q, k = (y / (y.square().sum(-1, keepdim=True) + (1e-6 if self.published else 1e-24)).sqrt() for y in (q, k))
        if self.published:
            q, beta = q * self.dk**-0.5, self.b_proj(x).sigmoid()
            decay = (-self.A_log.exp() * F.softplus(self.a_proj(x) + self.dt_bias)).exp()
        else:
            decay, beta = (F.logsigmoid(self.gk_proj(x)) / 16).exp(), self.beta_proj(x).sigmoid()
        if self.c["negative_eigenvalues"]:
            beta = 2 * beta
        out = []
        for t in range(x.shape[1]):
            s = s * (past[:, t] > 0)[:, None, None, None]
            decayed = s * decay[:, t, :, None, None]
            held = torch.einsum("bhkv,bhk->bhv", decayed if self.c["rule"] == "canonical" else s, k[:, t])
            s = decayed + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * (v[:, t] - held))
            out.append(torch.einsum("bhkv,bhk->bhv", s, q[:, t]))
        o, gate = torch.stack(out, 1), self.g_proj(x).unflatten(-1, (self.heads, -1))
        o = self.o_norm(o) * F.silu(gate) if self.published else o * gate.sigmoid()
        return self.o_proj(o.flatten(2)), (*kept, s)


MIXERS = {"conv": Conv, "shortconv": ShortConv, "leaky": Leaky, "attention": Attention, "delta": Delta}


class GLU(nn.Module):
    """W_down(act(W_gate x) * (W_up x))"""

    def __init__(self, c):
        super().__init__()
        self.W_gate, self.W_up = Linear(c, c.dim, c.ffn_hidden), Linear(c, c.dim, c.ffn_hidden)
        self.W_down = Linear(c, c.ffn_hidden, c.dim, last=True)
        self.act = F.silu if c.activation == "silu" else lambda g: g.relu().square()

    def forward(self, x):
        return self.W_down(self.act(self.W_gate(x)) * self.W_up(x))


class Block(nn.Module):
    def __init__(self, c, mixer):
        super().__init__()
        if c.x0:
            self.resid_lambda, self.x0_lambda = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.embedding = nn.Embedding(c.vocab_size, c.dim) if c.layer_embeddings else None
        self.norm1, self.norm2 = (Norm(c.dim, c.norm_eps) if c.block_norm else nn.Identity() for _ in range(2))
        self.mixer, self.ffn, self.x0 = MIXERS[mixer](c), GLU(c), c.x0

    def forward(self, h, x0, ids, past, state):
        if self.x0:
            h = self.resid_lambda * h + self.x0_lambda * x0
        if self.embedding is not None:
            h = h + self.embedding(ids)
        y, state = self.mixer(self.norm1(h), past, state)
        h = h + y
        return h + self.ffn(self.norm2(h)), state


class Pointer(nn.Module):
    """z_v <- ln(exp(z_v) + sum of exp(s_c) over the `window` rows c before a row after which v stands); s_c = scale D^-1/2 x . k_c + bias,
    k = x + W x. The state is the last keys and their tokens."""

    def __init__(self, c):
        super().__init__()
        self.key, self.window, self.config, self.words = nn.Linear(c.dim, c.dim, bias=False), c.pointer, c, None
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def tables(self, ids):
        """Of each token its twin, and whether it opens."""
        if self.words is None or self.words[0].device != ids.device:
            twin = torch.arange(self.config.vocab_size)
            opens = torch.zeros(self.config.vocab_size, dtype=torch.bool)
            for a, b in self.config.pointer_twins:
                twin[a], twin[b] = b, a
            opens[list(self.config.pointer_opens)] = True
            self.words = twin.to(ids.device), opens.to(ids.device)
        return self.words

    def forward(self, z, x, ids, past, state):
        keys = x + self.key(x)
        if state is not None:
            keys, ids = torch.cat([state[0], keys], 1), torch.cat([state[1], ids], 1)
        t, rows = x.shape[1], keys.shape[1]
        state = keys[:, -self.window :], ids[:, -self.window :]
        if rows == 1:
            return z, state
        back = torch.arange(rows - t, rows, device=x.device)[:, None] - torch.arange(rows - 1, device=x.device)
        seen = (back > 0) & (back <= self.window) & (back <= past[..., None])
        s = (self.scale * x.shape[-1] ** -0.5 * x) @ keys[:, :-1].mT + self.bias
        # Masses are shares of that of the largest score; a token without one keeps its logit.
        none = torch.finfo(s.dtype).min
        top = s.detach().masked_fill(~seen, none).amax(-1, keepdim=True)
        share = torch.where(seen, s - top, none).exp()
        after = ids[:, None, 1:].expand_as(share)
        if self.config.pointer_words:
            twin, opens = self.tables(ids)
            after = torch.where(opens[ids][:, None, :-1] == opens[ids][:, -t:, None], after, twin[after])
        mass = torch.zeros_like(z).scatter_add(-1, after, share)
        log = torch.where(mass > 0, top + torch.where(mass > 0, mass, 1.0).log(), none)
        return torch.logaddexp(z, log), state


@dataclass
class FlashLMOutput(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    state: tuple | None = None


class FlashLMForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = FlashLMConfig
    base_model_prefix = "model"
    _is_stateful = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.bigram = nn.Embedding(config.bigram, config.dim) if config.bigram else None
        self.blocks = nn.ModuleList(Block(config, mixer) for mixer in config.mixers)
        self.final_norm = Norm(config.dim, config.norm_eps)
        self.pointer = Pointer(config) if config.pointer else None
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)

    def get_input_embeddings(self):
        return self.embedding

    def set_input_embeddings(self, embedding):
        self.embedding = embedding

    def bigrams(self, ids, before):
        """Rows of the table of pairs: the hash `lowbias32` of both tokens, all arithmetic modulo 2^32."""
        x = before * 2**16 + ids
        for shift, by in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = (x ^ (x >> shift)) * by % 2**32
        return x * self.config.bigram >> 32

    def forward(self, input_ids, attention_mask=None, state=None, labels=None, use_cache=None, return_dict=None, **kwargs):
        """`state` is that of an output before, and `input_ids` what follows. Sequences may be filled up at their ends, not at their starts."""
        c, (batch, t) = self.config, input_ids.shape
        if attention_mask is not None and not attention_mask[:, 0].all():
            raise ValueError("FlashLM reads no padding before a text: set padding_side='right', or give texts of one length")
        start = 0, torch.full_like(input_ids[:, :1], c.eos_token_id), [None] * c.blocks, None
        seen, last, states, pointed = start if state is None else state
        rows = torch.arange(t, device=input_ids.device).expand(batch, t)
        if c.reset:
            past = rows - torch.where(input_ids == c.eos_token_id, rows, -seen).cummax(1).values
        else:
            past = rows + seen
        h = self.embedding(input_ids)
        if self.bigram is not None:
            before = torch.cat([last, input_ids[:, :-1]], 1)
            h = h + self.bigram(self.bigrams(input_ids, torch.where(past == 0, c.eos_token_id, before)))
        x0, after = h, []
        for block, own in zip(self.blocks, states):
            h, own = block(h, x0, input_ids, past, own)
            after.append(own)
        x = self.final_norm(h)
        logits = x @ self.embedding.weight.T
        if c.logit_softcap:
            logits = c.logit_softcap * (logits / c.logit_softcap).tanh()
        if self.pointer is not None:
            logits, pointed = self.pointer(logits, x, input_ids, past, pointed)
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        state = None if use_cache is False else (past[:, -1:] + 1, input_ids[:, -1:], after, pointed)
        return FlashLMOutput(loss=loss, logits=logits, state=state)

    # What `generate` wants: it passes `state` on, and texts on their way may change places (beams).

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def prepare_inputs_for_generation(self, input_ids, state=None, attention_mask=None, use_cache=True, **kwargs):
        ids = input_ids if state is None else input_ids[:, -1:]
        return {"input_ids": ids, "attention_mask": attention_mask, "state": state, "use_cache": use_cache}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        return {**super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs), "state": outputs.state}

    @staticmethod
    def _reorder_cache(state, places):
        if isinstance(state, torch.Tensor):
            return state.index_select(0, places.to(state.device))
        return None if state is None else type(state)(FlashLMForCausalLM._reorder_cache(own, places) for own in state)
