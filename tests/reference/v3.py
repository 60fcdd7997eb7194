"""Makes the test vectors of FlashLM v3.

    python v3.py [name ...]          v3_wide, v3_far, v3_thrice: as generate.py makes those of the other models
    python v3.py --torch FILE.pt     a checkpoint as the original saves it, beside it FILE.safetensors with ids, logits and nll

The losses, and what is minimised, are cross-entropy with label smoothing plus z-loss over all positions. NorMuon gets the ternary matrices,
AdamW the rest: weight decay on embedding and convolutions alone. The router has no gradient.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

HERE = Path(__file__).resolve().parent
STEPS, BATCHES = 10, 4
MARGIN = 1e-5  # in units of the threshold
NORMUON = {"lr": 0.02, "momentum": 0.95, "beta2": 0.999}
ADAMW = {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "decay": 0.1}


@dataclass
class Config:
    vocab: int
    dim: int
    inner: int
    dilations: list
    kernel: int
    groups: int
    recursions: int
    label_smoothing: float
    z_loss: float


# name: (model, batch, seq)
CASES = {
    "v3_wide": (Config(47, 48, 61, [1, 3], 5, 4, 2, 0.2, 1e-3), 2, 40),
    "v3_far": (Config(61, 24, 50, [2, 9, 31, 64], 3, 8, 1, 0.0, 0.0), 1, 150),
    "v3_thrice": (Config(53, 30, 37, [1, 4, 64], 4, 15, 3, 0.1, 1e-4), 3, 1 + 70),
}


class Norm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-8) * self.scale


class Ternary(nn.Module):
    """1 above the mean magnitude, -1 below its negative; the gradient goes straight through."""

    def __init__(self, outputs: int, inputs: int, std: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * std)

    def forward(self, x):
        w = self.weight
        signs = torch.sign(w) * (w.abs() > w.abs().mean())
        return F.linear(x, w + (signs - w).detach())


class Conv(nn.Module):
    def __init__(self, dim: int, kernel: int, dilation: int, groups: int):
        super().__init__()
        self.before = (kernel - 1) * dilation
        self.conv = nn.Conv1d(dim, dim, kernel, dilation=dilation, groups=groups, bias=False)

    def forward(self, x):
        return self.conv(F.pad(x.transpose(1, 2), (self.before, 0))).transpose(1, 2)


class Mixer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        pair = lambda s: nn.ModuleDict({k: Conv(c.dim, c.kernel, s, c.groups) for k in ("conv_gate", "conv_value")})
        self.layers = nn.ModuleList([pair(s) for s in c.dilations])
        self.norms = nn.ModuleList([Norm(c.dim) for _ in c.dilations])
        self.out_proj = Ternary(c.dim, c.dim, 0.3)

    def forward(self, x):
        for layer, norm in zip(self.layers, self.norms):
            n = norm(x)
            x = x + torch.sigmoid(layer["conv_gate"](n)) * layer["conv_value"](n)
        return self.out_proj(x)


class Glu(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = Ternary(c.inner, c.dim, c.dim**-0.5)
        self.up_proj = Ternary(c.inner, c.dim, c.dim**-0.5)
        self.down_proj = Ternary(c.dim, c.inner, 0.3)

    def forward(self, x):
        return self.down_proj(F.relu(self.gate_proj(x)).square() * self.up_proj(x))


class Router(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 1)


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.norm1, self.token_mixer = Norm(c.dim), Mixer(c)
        self.norm2, self.glu, self.router = Norm(c.dim), Glu(c), Router(c.dim)

    def forward(self, x):
        x = x + self.token_mixer(self.norm1(x))
        return x + self.glu(self.norm2(x))


class Model(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.cfg = c
        self.embedding = nn.Embedding(c.vocab, c.dim)
        self.block, self.final_norm = Block(c), Norm(c.dim)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for _ in range(self.cfg.recursions):
            x = self.block(x)
        return F.linear(self.final_norm(x), self.embedding.weight)


def objective(model: Model, x, y):
    logits = model(x).flatten(0, 1)
    smoothed = F.cross_entropy(logits, y.flatten(), label_smoothing=model.cfg.label_smoothing)
    return logits, smoothed, model.cfg.z_loss * logits.logsumexp(-1).pow(2).mean()


def matrices(model: Model):
    return {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, Ternary)}


class NorMuon:
    def __init__(self, weights):
        self.state = [(w, torch.zeros_like(w), torch.zeros(w.shape[0], dtype=w.dtype)) for w in weights]

    @torch.no_grad()
    def step(self):
        b1, b2 = NORMUON["momentum"], NORMUON["beta2"]
        for w, m, v in self.state:
            m.mul_(b1).add_(w.grad, alpha=1 - b1)
            x = m / (m.norm() + 1e-7)
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            o = x.T if tall else x
            v.mul_(b2).add_(o.pow(2).mean(1), alpha=1 - b2)
            o = o / (v.sqrt().unsqueeze(1) + 1e-8)
            w.sub_(o, alpha=NORMUON["lr"] * 0.2 * (o.shape[0] * o.shape[1]) ** 0.5 / (o.norm().item() + 1e-8))


def draw(c: Config, batch: int, seq: int, seed: int):
    torch.manual_seed(seed)
    model = Model(c)
    with torch.no_grad():
        model.embedding.weight.normal_(std=0.3)
        for name, p in model.named_parameters():
            if name.endswith(".scale"):
                p.normal_(1.0, 0.2)
    return model, torch.randint(0, c.vocab, (BATCHES + 1, batch, seq + 1))


def edge(model: Model) -> float:
    near = [((w.abs() / w.abs().mean()) - 1).abs().min().item() for w in matrices(model).values()]
    return min(near)


def run(model: Model, tokens, dtype):
    model = model.to(dtype)
    named = dict(model.named_parameters())
    out = {f"param.{k}": p.detach().clone() for k, p in named.items()}
    x, y = tokens[BATCHES, :, :-1], tokens[BATCHES, :, 1:]
    logits, smoothed, z = objective(model, x, y)
    (smoothed + z).backward()
    out |= {f"grad.{k}": p.grad.clone() for k, p in named.items() if p.grad is not None}
    out |= {"x": x.int(), "y": y.int(), "logits": logits.detach().view(*x.shape, -1), "loss": (smoothed + z).detach().view(1)}
    own = matrices(model)
    decays = [k for k in named if k == "embedding.weight" or k.endswith("conv.weight")]
    plain = [k for k in named if k not in own and k not in decays]
    normuon = NorMuon(own.values())
    adamw = torch.optim.AdamW(
        [{"params": [named[k] for k in decays], "weight_decay": ADAMW["decay"]},
         {"params": [named[k] for k in plain], "weight_decay": 0.0}],
        lr=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"],
    )  # fmt: skip
    losses, norms, nearest = [], [], edge(model)
    for step in range(STEPS):
        model.zero_grad(set_to_none=True)
        b = tokens[step % BATCHES]
        _, smoothed, z = objective(model, b[:, :-1], b[:, 1:])
        (smoothed + z).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        normuon.step()
        adamw.step()
        losses.append((smoothed + z).item())
        nearest = min(nearest, edge(model))
    out |= {f"traj.final.{k}": p.detach().clone() for k, p in named.items()}
    out["traj.batches"] = tokens[:BATCHES].int()
    out["traj.losses"] = torch.tensor(losses, dtype=torch.float64)
    out["traj.grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    return out, nearest, (list(own), decays, plain)


def ratio(a, b) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def make(name: str):
    c, batch, seq = CASES[name]
    seed, nearest = 0, 0.0
    while nearest < MARGIN:
        seed += 1
        model, tokens = draw(c, batch, seq, seed)
        single, nearest, (own, decays, plain) = run(model, tokens, torch.float32)
    model, tokens = draw(c, batch, seq, seed)
    double, _, _ = run(model, tokens, torch.float64)
    worst = {}
    for key, value in single.items():
        if value.is_floating_point() and not key.startswith(("param.", "traj.final.block.router")):
            kind = ".".join(key.split(".")[:2]) if key.startswith("traj") else key.split(".")[0]
            worst[kind] = max(worst.get(kind, 0.0), ratio(value, double[key]))
    config = {"arch": "v3"} | asdict(c) | {
        "positions": "all", "normuon": NORMUON | {"params": own},
        "adamw": ADAMW | {"decay_params": decays, "no_decay_params": plain},
        "clip": 1.0, "steps": STEPS, "seed": seed, "made_with": f"PyTorch {torch.__version__}, float32",
    }  # fmt: skip
    path = HERE / f"{name}.safetensors"
    path.write_bytes(save({k: v.contiguous() for k, v in single.items()}, {"config": json.dumps(config)}))
    first, last = single["traj.losses"][[0, -1]].tolist()
    print(f"{name}: {path.stat().st_size} bytes, seed {seed}, margin {nearest:.1e}, loss {first:.4f} -> {last:.4f}")
    print("    worst RMS ratio of float32 to float64:", ", ".join(f"{k} {v:.0e}" for k, v in worst.items()))


def checkpoint(path: Path):
    """As the original saves one, with the states of both optimizers, the moving average and its settings."""
    c = Config(97, 32, 43, [1, 4, 64], 4, 16, 2, 0.1, 1e-4)
    model, tokens = draw(c, 2, 90, 1)
    ids = tokens[0, :, :-1]
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    objective(model, ids, tokens[0, :, 1:])[1].backward()
    adamw.step()
    state = model.state_dict() | {"lm_head.weight": model.embedding.weight.detach()}
    with torch.no_grad():
        logits = model(ids)
    nll = -torch.log_softmax(logits.double(), -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    settings = {
        "d_model": 32, "n_recursions": 2, "phase_schedule": {"1a": {"start": 0, "freeze_embed": True}}, "adamw_betas": (0.9, 0.95),
        "ewa_checkpoints": [8000, 9000], "dataset_name": "none", "lr": 3e-4, "nothing": None,
    }  # fmt: skip
    whole = {"step": 7, "model_state_dict": state, "adamw_state_dict": adamw.state_dict(), "ema_state": state,
             "train_loss": 6.9, "val_loss": 6.8, "config": settings}  # fmt: skip
    torch.save(whole, path)
    torch.save(state, path.with_name(path.stem + "_bare.pt"))
    expected = {"ids": ids.contiguous(), "logits": logits.contiguous(), "nll": nll.float().contiguous()}
    path.with_suffix(".safetensors").write_bytes(save(expected))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--torch"]:
        checkpoint(Path(sys.argv[2]))
    else:
        for name in sys.argv[1:] or CASES:
            make(name)
