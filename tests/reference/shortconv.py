"""Makes shortconv.safetensors: one short convolution branch of crates/model/src/mixer/shortconv, forward and backward, in PyTorch.

    python shortconv.py

LFM2's block as `Lfm2ShortConv` of transformers has it (`in_proj`, chunk into B, C, x, `conv1d(B * x)`, `C *`, `out_proj`), each story
by itself. Weights are float: the quantiser has vectors of its own. Computed in float64, kept in float32.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

B, T, D, K, EPS = 2, 60, 36, 5, 1e-6
STORIES = [[5, 1, 54], [60]]


def branch(h: torch.Tensor, p: dict) -> torch.Tensor:
    """Of one story, `h: [t, D]`."""
    x = F.rms_norm(h, (D,), p["norm.scale"], EPS)
    b, c, x = F.linear(x, p["mixer.up.weight"]).T.chunk(3)
    s = F.conv1d(b * x, p["mixer.conv.weight"], padding=K - 1, groups=D)[:, : len(h)]
    return h + F.linear((c * s).T, p["mixer.down.weight"])


def main() -> None:
    torch.manual_seed(1)
    p = {"norm.scale": 1 + 0.2 * torch.randn(D), "mixer.up.weight": torch.randn(3 * D, D) * 0.3}
    p |= {"mixer.conv.weight": torch.randn(D, 1, K) * 0.5, "mixer.down.weight": torch.randn(D, D) * 0.3}
    p["h"], dy = torch.randn(B, T, D), torch.randn(B, T, D)
    past = torch.tensor([[i for n in row for i in range(n)] for row in STORIES])

    p64 = {name: t.double().requires_grad_() for name, t in p.items()}
    y = torch.stack([torch.cat([branch(h, p64) for h in row.split(n)]) for row, n in zip(p64["h"], STORIES)])
    (y * dy).sum().backward()
    out = {"h": p.pop("h"), "past": past.int(), "dy": dy, "y": y.detach().float(), "dh": p64.pop("h").grad.float()}
    out |= {f"param.{name}": t for name, t in p.items()}
    out |= {f"grad.{name}": t.grad.float() for name, t in p64.items()}
    save_file({name: t.contiguous() for name, t in out.items()}, Path(__file__).with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
