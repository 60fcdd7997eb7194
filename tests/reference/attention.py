"""Makes attention.safetensors: one attention branch of crates/model/src/mixer/attention.rs, forward and backward, in PyTorch.

    python attention.py

Written from the formulas alone: rows of a story see those of the last WINDOW rows, themselves included; queries and keys are
normalised a head, then rotated. Weights are float: the quantiser has vectors of its own. Computed in float64, kept in float32.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

B, T, D, HEADS, WINDOW, BASE, EPS = 2, 60, 36, 3, 20, 500.0, 1e-6
STORIES = [[5, 1, 54], [60]]
WIDTH = D // HEADS


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.view(B, T, HEADS, WIDTH).transpose(1, 2)


def rotate(x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    rates = BASE ** (-torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)
    angles = (past[..., None] * rates)[:, None]
    z = torch.complex(x[..., : WIDTH // 2], x[..., WIDTH // 2 :]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], -1)


def branch(h: torch.Tensor, p: dict, past: torch.Tensor, story: torch.Tensor) -> torch.Tensor:
    x = F.rms_norm(h, (D,), p["norm.scale"], EPS)
    q, k, v = (heads(x @ p[f"mixer.{n}_proj.weight"].T) for n in "qkv")
    q, k = (rotate(F.rms_norm(u, (WIDTH,), p[f"mixer.{n}_norm.scale"], EPS), past) for u, n in ((q, "q"), (k, "k")))
    row = torch.arange(T)
    behind = row[:, None] - row
    seen = (story[:, :, None] == story[:, None]) & (behind >= 0) & (behind < WINDOW)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
    return h + o.transpose(1, 2).reshape(B, T, D) @ p["mixer.o_proj.weight"].T


def main() -> None:
    torch.manual_seed(1)
    p = {"norm.scale": 1 + 0.2 * torch.randn(D)}
    p |= {f"mixer.{n}_proj.weight": torch.randn(D, D) * 0.3 for n in "qkvo"}
    p |= {f"mixer.{n}_norm.scale": 1.5 + 0.3 * torch.randn(WIDTH) for n in "qk"}
    p["h"], dy = torch.randn(B, T, D), torch.randn(B, T, D)
    past = torch.tensor([[i for n in row for i in range(n)] for row in STORIES])
    story = torch.tensor([[s for s, n in enumerate(row) for _ in range(n)] for row in STORIES])

    p64 = {name: t.double().requires_grad_() for name, t in p.items()}
    y = branch(p64["h"], p64, past, story)
    (y * dy).sum().backward()
    out = {"h": p.pop("h"), "past": past.int(), "dy": dy, "y": y.detach().float(), "dh": p64.pop("h").grad.float()}
    out |= {f"param.{name}": t for name, t in p.items()}
    out |= {f"grad.{name}": t.grad.float() for name, t in p64.items()}
    save_file({name: t.contiguous() for name, t in out.items()}, Path(__file__).with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
