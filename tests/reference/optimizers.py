"""Muon and NorMuon in plain PyTorch, and the vectors of every optimizer of crates/train/src/optim.

    python optimizers.py [name ...]

A file holds matrices of odd shapes and one scale, a gradient of each for every step, and the parameters on the way; README.md
names its tensors. What is no matrix goes to AdamW, and all gradients are clipped together first.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save

HERE = Path(__file__).resolve().parent
SHAPES = {"square": (33, 33), "tall": (70, 19), "wide": (17, 90), "row": (1, 37), "column": (29, 1), "scale": (45,)}
STEPS, MIDDLE = 8, 4
# Learning rates of the steps over their peak, and the size of the gradients: with clip 1, some are cut and some are not.
RATES = [0.5, 1.0, 1.0, 0.9, 0.7, 0.5, 0.3, 0.1]
SIZES = [3.0, 0.01, 0.2, 0.001, 1.0, 0.02, 0.005, 0.1]
# Files of an optimizer with switches: its name, and what differs from SETTINGS. `momenta` is one momentum a step.
SWITCHED = {
    f"{name}_rows": (name, {"row_normalise": True, "newton_schulz_steps": 3,
                            "momenta": [0.95, 0.95, 0.95, 0.94, 0.92, 0.9, 0.88, 0.86]})
    for name in ("muon", "normuon")
}  # fmt: skip
SETTINGS = {
    "lr": 4e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01, "clip": 1.0,
    "matrix_lr": 0.02, "momentum": 0.95, "matrix_beta2": 0.99, "matrix_weight_decay": 0.1,
}  # fmt: skip


def newton_schulz(u: torch.Tensor, s: dict) -> torch.Tensor:
    """Steps of the quintic iteration, on the transpose where there are more rows than columns; before them, each row may be
    divided by its RMS."""
    if s.get("row_normalise"):
        u = u / (u.square().mean(1, keepdim=True).sqrt() + 1e-12)
    x = u.T if u.shape[0] > u.shape[1] else u
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    for _ in range(s.get("newton_schulz_steps", 5)):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x.T if u.shape[0] > u.shape[1] else x


class Muon(torch.optim.Optimizer):
    """m = mu m + (1-mu) g; U = g + mu (m - g); W = (1 - lr wd) W - lr sqrt(max(1, rows/cols)) newton_schulz(U)."""

    def __init__(self, params, s: dict):
        super().__init__(params, {"lr": s["matrix_lr"], "momentum": s["momentum"]})
        self.s = s

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for w in group["params"]:
                m = self.state[w].setdefault("m", torch.zeros_like(w))
                m.copy_(mu * m + (1 - mu) * w.grad)
                x = newton_schulz(w.grad + mu * (m - w.grad), self.s)
                rows, cols = w.shape
                w.copy_((1 - lr * self.s["matrix_weight_decay"]) * w - lr * max(1, rows / cols) ** 0.5 * x)


class NorMuon(torch.optim.Optimizer):
    """m = mu m + (1-mu) g; O = newton_schulz(m); v = b v + (1-b) mean over a row of O^2; H = O / (sqrt(v) + 1e-8);
    W = (1 - lr wd) W - lr 0.2 sqrt(rows cols) / (|H| + 1e-8) H."""

    def __init__(self, params, s: dict):
        super().__init__(params, {"lr": s["matrix_lr"], "momentum": s["momentum"]})
        self.s = s

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, mu, beta2 = group["lr"], group["momentum"], self.s["matrix_beta2"]
            for w in group["params"]:
                m = self.state[w].setdefault("m", torch.zeros_like(w))
                v = self.state[w].setdefault("v", torch.zeros_like(w[:, :1]))
                m.copy_(mu * m + (1 - mu) * w.grad)
                o = newton_schulz(m, self.s)
                v.copy_(beta2 * v + (1 - beta2) * o.square().mean(1, keepdim=True))
                h = o / (v.sqrt() + 1e-8)
                rate = lr * 0.2 * w.numel() ** 0.5 / (torch.linalg.matrix_norm(h) + 1e-8)
                w.copy_((1 - lr * self.s["matrix_weight_decay"]) * w - rate * h)


class Together:
    """One optimizer for the matrices and one for the rest, which take their steps at once."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        self.peaks = [part.param_groups[0]["lr"] for part in parts]

    def zero_grad(self, set_to_none: bool = True):
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self):
        for part in self.parts:
            part.step()

    def scale_rates(self, factor: float):
        for part, peak in zip(self.parts, self.peaks):
            part.param_groups[0]["lr"] = peak * factor

    def set_momentum(self, momentum: float):
        for part in self.parts:
            if "momentum" in part.param_groups[0]:
                part.param_groups[0]["momentum"] = momentum


def make(name: str, matrices: list, rest: list, s: dict) -> Together:
    """`matrices` go to the optimizer of that name, `rest` to AdamW."""

    def adamw(params):
        return torch.optim.AdamW(params, s["lr"], tuple(s["betas"]), s["eps"], s["weight_decay"])

    if name == "adamw":
        return Together([adamw(matrices + rest)])
    if name == "muon":
        chosen = Muon(matrices, s)
    elif name == "normuon":
        chosen = NorMuon(matrices, s)
    else:
        raise ValueError(f"no formula of an optimizer {name!r} in make()")
    return Together([chosen, adamw(rest)])


def run(name: str, dtype: torch.dtype, chosen=None) -> dict[str, torch.Tensor]:
    """`chosen` makes another optimizer for the matrices."""
    generator = torch.Generator().manual_seed(1)
    params = {k: (0.05 * torch.randn(shape, generator=generator)).to(dtype) for k, shape in SHAPES.items()}
    out = {f"param.{k}": p.clone() for k, p in params.items()}
    # Directions of very different strength, as those of a model: the small ones grow most in Newton-Schulz.
    decay = {k: 2.0 ** -(torch.arange(shape[-1]) / 4).to(dtype) for k, shape in SHAPES.items()}
    rest = [p for p in params.values() if p.ndim < 2]
    matrices = [p for p in params.values() if p.ndim == 2]
    name, switches = SWITCHED.get(name, (name, {}))
    optimizer = make(name, matrices, rest, SETTINGS | switches)
    if chosen:
        optimizer = Together([chosen(matrices), *optimizer.parts[1:]])
    grads = {k: [] for k in params}
    for step in range(STEPS):
        for k, p in params.items():
            p.grad = SIZES[step] * decay[k] * torch.randn(p.shape, generator=generator).to(dtype)
            grads[k].append(p.grad.clone())
        torch.nn.utils.clip_grad_norm_(params.values(), SETTINGS["clip"])
        optimizer.scale_rates(RATES[step])
        if "momenta" in switches:
            optimizer.set_momentum(switches["momenta"][step])
        optimizer.step()
        if step + 1 in (MIDDLE, STEPS):
            out |= {f"after{step + 1}.{k}": p.clone() for k, p in params.items()}
    return out | {f"grads.{k}": torch.stack(g) for k, g in grads.items()}


def worst(a: dict, b: dict) -> float:
    """The largest RMS ratio of the difference to what the steps changed, over all tensors on the way."""

    def ratio(key: str) -> float:
        start = b["param." + key.split(".")[1]].double()
        return ((a[key].double() - b[key].double()).norm() / (b[key].double() - start).norm()).item()

    return max(ratio(key) for key in b if key.startswith("after"))


def write(name: str):
    single = run(name, torch.float32)
    optimizer, switches = SWITCHED.get(name, (name, {}))
    settings = {"optimizer": optimizer} | SETTINGS | switches | {
        "steps": STEPS, "middle": MIDDLE, "rates": RATES, "made_with": f"PyTorch {torch.__version__}, float32",
    }  # fmt: skip
    path = HERE / f"{name}.safetensors"
    path.write_bytes(save({k: v.contiguous() for k, v in single.items()}, {"config": json.dumps(settings)}))
    print(f"{name}: {path.stat().st_size} bytes")
    print(f"    float32 from float64: {worst(single, run(name, torch.float64)):.1e} of what the steps changed")
    if name == "muon":
        s = SETTINGS
        own = run(name, torch.float32, lambda p: torch.optim.Muon(
            p, s["matrix_lr"], s["matrix_weight_decay"], s["momentum"]))  # fmt: skip
        print(f"    torch.optim.Muon, whose Newton-Schulz is in bfloat16: {worst(own, single):.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["adamw", "muon", "normuon", *SWITCHED]:
        write(name)
