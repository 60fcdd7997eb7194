"""FlashLM v4 and its blockwise variant in plain PyTorch.

    h = E[tokens];  h += Mixer(Norm(h));  h += GLU(Norm(h))  for each block;  logits = Norm(h) E^T

The yardstick for speed and the source of the test vectors, so it follows the formulas and nothing else:
eager operations, float32, autograd. Shapes: tokens [B, T], h [B, T, D], logits [B, T, V], a weight [out, in].
Only training uses the compiled and bfloat16 modes, through `make_loss`.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    vocab: int
    dim: int
    blocks: int
    hidden: int
    kernel: int = 8
    scale: str = "tensor"  # what shares one alpha: "tensor", "block" of the flattened weight, "group" of a row
    stat: str = "mean"  # alpha is the "mean" or the "median" of |W|
    block_size: int = 256  # elements of a block or a group
    bitlinear_norm: bool = False  # RMSNorm on the input of every BitLinear
    block_norms: bool = True  # RMSNorm before the mixer and before the GLU
    activation: str = "silu"  # the gate of the GLU goes through "silu" or "relu2", max(g, 0)^2
    sub_norm: bool = False  # RMSNorm on the input of the output projections, mixer.down and W_down
    zero_init: bool = False  # output projections start at zero
    logit_softcap: float = 0.0  # c of c tanh(z / c), 0: none
    z_loss: float = 0.0  # weight of logsumexp(logits)^2 in what is minimised


_SMALL = Config(vocab=10000, dim=192, blocks=6, hidden=512)
PRESETS = {
    "v4-small": _SMALL,
    "v4-large": Config(vocab=10000, dim=384, blocks=8, hidden=1024),
    "v4-blockwise-small": replace(_SMALL, scale="block", bitlinear_norm=True, block_norms=False),
}


def statistic(a: torch.Tensor, stat: str, denominator: int) -> torch.Tensor:
    """[..., n] -> [..., 1]: the sum over `denominator`, or the lower median."""
    if stat == "mean":
        return a.sum(-1, keepdim=True) / denominator
    return a.median(-1, keepdim=True).values


def alpha_of(w: torch.Tensor, cfg: Config) -> torch.Tensor:
    """The scale of every element of `w`; broadcasts against `w`, or has its shape."""
    a, n = w.abs(), cfg.block_size
    if cfg.scale == "tensor" or (cfg.scale == "block" and w.numel() <= n):
        return statistic(a.flatten(), cfg.stat, w.numel())
    rows = a.reshape(1, -1) if cfg.scale == "block" else a
    whole = rows.shape[1] // n * n
    parts = []
    if whole:
        cut = rows[:, :whole].unflatten(1, (-1, n))
        parts.append(statistic(cut, cfg.stat, n).expand_as(cut).flatten(1))
    if whole < rows.shape[1]:
        rest = rows[:, whole:]
        # The zeros that pad the last short block count in its mean; a short group has no padding.
        denominator = n if cfg.scale == "block" else rest.shape[1]
        parts.append(statistic(rest, cfg.stat, denominator).expand_as(rest))
    return torch.cat(parts, 1).view_as(w)


def quantise(w: torch.Tensor, cfg: Config) -> torch.Tensor:
    """Ternary weights times their scale; the gradient goes straight to `w`."""
    with torch.no_grad():
        alpha = alpha_of(w, cfg)
        step = (w / (alpha + 1e-8)).round().clamp(-1, 1) * alpha - w
    return w + step


class RMSNorm(nn.Module):
    eps = 1e-6

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.scale


class BitLinear(nn.Module):
    """`output` marks the output projection of a branch."""

    def __init__(self, inputs: int, outputs: int, cfg: Config, output: bool = False):
        super().__init__()
        self.cfg = cfg
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (2 / outputs) ** 0.5)
        if output and cfg.zero_init:
            nn.init.zeros_(self.weight)
        self.norm = RMSNorm(inputs) if cfg.bitlinear_norm or (output and cfg.sub_norm) else nn.Identity()

    def forward(self, x):
        x = self.norm(x)
        return F.linear(x, quantise(self.weight, self.cfg))


class GatedConvMixer(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.up = BitLinear(cfg.dim, 2 * cfg.dim, cfg)
        self.conv = nn.Conv1d(cfg.dim, cfg.dim, cfg.kernel, groups=cfg.dim, bias=False)
        nn.init.normal_(self.conv.weight, std=(2 / (cfg.dim * cfg.kernel)) ** 0.5)
        self.down = BitLinear(cfg.dim, cfg.dim, cfg, output=True)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, dim=-1)
        value = F.pad(value.transpose(1, 2), (self.conv.kernel_size[0] - 1, 0))
        value = self.conv(value).transpose(1, 2)
        return self.down(value * torch.sigmoid(gate))


class TernaryGLU(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.W_gate = BitLinear(cfg.dim, cfg.hidden, cfg)
        self.W_up = BitLinear(cfg.dim, cfg.hidden, cfg)
        self.W_down = BitLinear(cfg.hidden, cfg.dim, cfg, output=True)
        self.act = F.silu if cfg.activation == "silu" else lambda g: F.relu(g).square()

    def forward(self, x):
        return self.W_down(self.act(self.W_gate(x)) * self.W_up(x))


class Block(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.norm1 = RMSNorm(cfg.dim) if cfg.block_norms else nn.Identity()
        self.mixer = GatedConvMixer(cfg)
        self.norm2 = RMSNorm(cfg.dim) if cfg.block_norms else nn.Identity()
        self.ffn = TernaryGLU(cfg)

    def forward(self, h):
        h = h + self.mixer(self.norm1(h))
        return h + self.ffn(self.norm2(h))


class Model(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.embedding = nn.Embedding(cfg.vocab, cfg.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.blocks))
        self.final_norm = RMSNorm(cfg.dim)

    def forward(self, tokens):
        h = self.embedding(tokens)
        for block in self.blocks:
            h = block(h)
        logits = F.linear(self.final_norm(h), self.embedding.weight)
        c = self.cfg.logit_softcap
        return c * torch.tanh(logits / c) if c else logits


def objective(logits: torch.Tensor, targets: torch.Tensor, cfg: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """(what is minimised, the cross-entropy in it), means over logits [N, V] and targets [N]."""
    loss = F.cross_entropy(logits, targets)
    return (loss + cfg.z_loss * logits.logsumexp(-1).square().mean() if cfg.z_loss else loss), loss


MODES = ("eager", "bf16", "compile", "compile-fp32")


def make_loss(model: Model, mode: str):
    """(x [B, T], y [B, T]) -> `objective`. "bf16" is autocast, "compile" is autocast and torch.compile."""
    autocast = mode in ("bf16", "compile")

    def loss(x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(x)
        return objective(logits.flatten(0, 1).float(), y.flatten(), model.cfg)

    return torch.compile(loss) if mode.startswith("compile") else loss


def make_optimizer(model: Model, lr: float, mode: str = "eager"):
    """AdamW with weight decay on every parameter but numbers of heads; fused in the mode that looks for speed."""
    scalars = [p for name, p in model.named_parameters() if name.endswith(("A_log", "dt_bias"))]
    others = [p for name, p in model.named_parameters() if not name.endswith(("A_log", "dt_bias"))]
    groups = [{"params": others}] + ([{"params": scalars, "weight_decay": 0.0}] if scalars else [])
    return torch.optim.AdamW(
        groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, fused=mode.startswith("compile") or None
    )


def train_step(model: Model, loss_fn, optimizer, x, y) -> tuple[torch.Tensor, torch.Tensor]:
    """One whole step with clipping at 1.0: (cross-entropy, gradient norm before clipping)."""
    optimizer.zero_grad(set_to_none=True)
    minimised, loss = loss_fn(x, y)
    minimised.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach(), norm
