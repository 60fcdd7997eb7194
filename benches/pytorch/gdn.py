"""The gated delta rule layer in plain PyTorch, token by token as the original script runs it.

    original   S = exp(g) S + beta k (v - S^T k)^T; o = S^T q            g = logsigmoid(W_gk x) / 16, gate sigmoid
    published  S = exp(g) S, then S = S + beta k (v - S^T k)^T           arXiv 2412.06464: A_log, dt_bias, q scaled, a norm a head

Shapes of a head: q, k [B, T, H, dk], v [B, T, H, dv], g, beta [B, T, H], S [B, H, dk, dv]. Autograd does the rest, so this is
the yardstick for both the numbers and the speed of a chunkwise form.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from v4 import BitLinear, Config, Model, RMSNorm


@dataclass(frozen=True)
class GdnConfig(Config):
    heads: int = 4
    expand_k: float = 0.75
    expand_v: float = 1.5
    conv: int = 4
    form: str = "original"  # or "published"
    rule: str = "undecayed"  # or "canonical"
    negative_eigenvalues: bool = False


PRESETS = {
    "gdn-small": GdnConfig(vocab=10000, dim=192, blocks=6, hidden=512),
    "gdn-large": GdnConfig(vocab=10000, dim=384, blocks=8, hidden=1024, heads=6),
}


def delta_rule(q, k, v, g, beta, rule: str):
    """[B, T, H, dv], one token after the other."""
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    out = []
    for t in range(q.shape[1]):
        decay = g[:, t].exp()[..., None, None]
        seen = state * decay if rule == "canonical" else state
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", seen, k[:, t])
        write = torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * error)
        state = state * decay + write
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(out, 1)


class DeltaMixer(nn.Module):
    def __init__(self, cfg: GdnConfig):
        super().__init__()
        self.cfg, self.published = cfg, cfg.form == "published"
        keys, values = round(cfg.expand_k * cfg.dim), round(cfg.expand_v * cfg.dim)
        self.q_proj, self.k_proj = BitLinear(cfg.dim, keys, cfg), BitLinear(cfg.dim, keys, cfg)
        self.v_proj, self.g_proj = BitLinear(cfg.dim, values, cfg), BitLinear(cfg.dim, values, cfg)
        if self.published:
            self.a_proj = nn.Linear(cfg.dim, cfg.heads, bias=False)
            self.b_proj = nn.Linear(cfg.dim, cfg.heads, bias=False)
            self.A_log = nn.Parameter(torch.empty(cfg.heads).uniform_(1e-3, 16).log())
            dt = torch.empty(cfg.heads).uniform_(-6.9, -2.3).exp()
            self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
            self.o_norm = RMSNorm(values // cfg.heads)
            self.o_norm.eps = 1e-5
        else:
            self.gk_proj, self.beta_proj = BitLinear(cfg.dim, cfg.heads, cfg), BitLinear(cfg.dim, cfg.heads, cfg)
        conv = lambda width: nn.Conv1d(width, width, cfg.conv, groups=width, bias=False)  # noqa: E731
        self.q_conv, self.k_conv, self.v_conv = conv(keys), conv(keys), conv(values)
        for c in (self.q_conv, self.k_conv, self.v_conv):
            nn.init.normal_(c.weight, std=(1 / (3 * cfg.conv)) ** 0.5 if self.published else 0.02)
        self.o_proj = BitLinear(values, cfg.dim, cfg)

    def short(self, conv, x):
        """silu of the causal convolution, in heads: [B, T, H, width]."""
        x = conv(F.pad(x.transpose(1, 2), (self.cfg.conv - 1, 0))).transpose(1, 2)
        return F.silu(x).unflatten(-1, (self.cfg.heads, -1))

    def unit(self, x):
        if self.published:
            return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)
        return F.normalize(x, dim=-1)

    def forward(self, x):
        q = self.unit(self.short(self.q_conv, self.q_proj(x)))
        k = self.unit(self.short(self.k_conv, self.k_proj(x)))
        v = self.short(self.v_conv, self.v_proj(x))
        if self.published:
            q = q * q.shape[-1] ** -0.5
            g = -self.A_log.exp() * F.softplus(self.a_proj(x) + self.dt_bias)
            beta = torch.sigmoid(self.b_proj(x)) * (2 if self.cfg.negative_eigenvalues else 1)
        else:
            g, beta = F.logsigmoid(self.gk_proj(x)) / 16, torch.sigmoid(self.beta_proj(x))
        o, gate = delta_rule(q, k, v, g, beta, self.cfg.rule), self.g_proj(x)
        if self.published:
            return self.o_proj(self.o_norm(o).flatten(2) * F.silu(gate))
        return self.o_proj(o.flatten(2) * torch.sigmoid(gate))


def gdn_model(cfg: GdnConfig) -> Model:
    model = Model(cfg)
    for block in model.blocks:
        block.mixer = DeltaMixer(cfg)
    return model
