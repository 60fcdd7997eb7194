"""Makes the test vectors of this folder with benches/pytorch/v4.py.

    python generate.py [name ...]

A file holds one forward and backward pass and a training trajectory from the same parameters; README.md names its
tensors. Parameters are drawn wider than a training run starts from (norm scales apart from 1, embedding of
std 0.3), so that a norm left out or a scale of the wrong block shows in the logits.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benches" / "pytorch"))
import optimizers  # noqa: E402
from gdn import GdnConfig, gdn_model  # noqa: E402
from v4 import BitLinear, Config, Model, alpha_of, make_loss, make_optimizer, objective, train_step  # noqa: E402

STEPS, BATCHES, LR = 12, 4, 4e-3
MARGIN = 1e-5  # in units of alpha

# name: (arch, model, batch, seq[, optimizer of the matrices])
CASES = {
    "tensor_median": ("v4", Config(53, 25, 2, 34, 8, stat="median"), 2, 17),
    "block64_mean_no_norms": ("v4-blockwise", Config(41, 27, 2, 29, 1, "block", "mean", 64, False, False), 3, 11),
    "group16_mean_inner_norm": ("v4-blockwise", Config(61, 38, 1, 35, 8, "group", "mean", 16, True, False), 2, 19),
    "group24_median_both_norms": ("v4-blockwise", Config(37, 31, 1, 43, 8, "group", "median", 24, True, True), 3, 23),
    "block1024_mean_kernel3": ("v4-blockwise", Config(47, 24, 2, 35, 3, "block", "mean", 1024, True, True), 2, 13),
    "block96_median_outer_norms": ("v4", Config(43, 26, 2, 33, 3, "block", "median", 96, False, True), 3, 14),
    "relu2_subnorm": (
        "v4",
        Config(45, 28, 1, 37, 4, "group", "mean", 16, activation="relu2", sub_norm=True),
        2,
        18,
    ),
    "relu2_subnorm_zero_init": (
        "v4",
        Config(39, 30, 2, 41, 8, "group", "mean", 24, activation="relu2", sub_norm=True, zero_init=True),
        3,
        15,
    ),
    "softcap_zloss": ("v4", Config(51, 29, 2, 36, 5, logit_softcap=2.0, z_loss=0.05), 2, 21),
    "delta_published": (
        "gdn",
        GdnConfig(47, 24, 2, 35, heads=3, expand_k=0.625, expand_v=0.875, form="published", rule="canonical"),
        2,
        70,
    ),
    "delta_negative": (
        "gdn",
        GdnConfig(41, 30, 1, 23, 8, "group", "mean", 16, heads=2, expand_k=0.6, expand_v=1.4, conv=3, form="published",
                  negative_eigenvalues=True),
        2,
        45,
    ),
    "delta_original": (
        "gdn",
        GdnConfig(43, 28, 1, 29, heads=2, expand_k=0.5, expand_v=1.0, conv=2, rule="canonical"),
        3,
        33,
    ),
    "model_muon": ("v4", Config(43, 26, 2, 37, 3), 3, 14, "muon"),
    "model_normuon": ("v4", Config(43, 26, 2, 37, 3), 3, 14, "normuon"),
}


def draw(cfg: Config, batch: int, seq: int, seed: int):
    torch.manual_seed(seed)
    model = gdn_model(cfg) if isinstance(cfg, GdnConfig) else Model(cfg)
    with torch.no_grad():
        model.embedding.weight.normal_(std=0.3)
        for name, p in model.named_parameters():
            if name.endswith(".scale"):
                p.normal_(1.0, 0.2)
            if name.endswith("conv.weight"):
                p.mul_(4)
    tokens = torch.randint(0, cfg.vocab, (BATCHES + 1, batch, seq + 1))
    return model, tokens


def edge(model: Model) -> float:
    """The smallest distance of a latent weight from a rounding edge, in units of its alpha."""
    distances = []
    for m in model.modules():
        if isinstance(m, BitLinear):
            w = m.weight.detach()
            distances.append(((w / (alpha_of(w, m.cfg) + 1e-8)).abs() - 0.5).abs().min().item())
    return min(distances)


def chosen_optimizer(model: Model, name: str):
    if name == "adamw":
        return make_optimizer(model, LR)
    matrices = [m.weight for m in model.modules() if isinstance(m, BitLinear)]
    rest = [p for p in model.parameters() if all(p is not w for w in matrices)]
    return optimizers.make(name, matrices, rest, optimizers.SETTINGS | {"lr": LR})


def run(model: Model, tokens: torch.Tensor, dtype: torch.dtype, optimizer_name: str):
    """(tensors, smallest distance from a rounding edge on the way)."""
    model = model.to(dtype)
    out = {f"param.{k}": p.detach().clone() for k, p in model.named_parameters()}
    x, y = tokens[BATCHES, :, :-1], tokens[BATCHES, :, 1:]
    logits = model(x)
    minimised, loss = objective(logits.flatten(0, 1), y.flatten(), model.cfg)
    minimised.backward()
    out |= {f"grad.{k}": p.grad.clone() for k, p in model.named_parameters()}
    out |= {"x": x.int(), "y": y.int(), "logits": logits.detach(), "loss": loss.detach().view(1)}

    loss_fn, optimizer = make_loss(model, "eager"), chosen_optimizer(model, optimizer_name)
    losses, norms, nearest = [], [], edge(model)
    for step in range(STEPS):
        b = tokens[step % BATCHES]
        loss, norm = train_step(model, loss_fn, optimizer, b[:, :-1], b[:, 1:])
        losses.append(loss.item())
        norms.append(norm.item())
        nearest = min(nearest, edge(model))
    out |= {f"traj.final.{k}": p.detach().clone() for k, p in model.named_parameters()}
    out["traj.batches"] = tokens[:BATCHES].int()
    out["traj.losses"] = torch.tensor(losses, dtype=torch.float64)
    out["traj.grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    return out, nearest


def ratio(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def make(name: str):
    arch, cfg, batch, seq, *optimizer = CASES[name]
    optimizer = optimizer[0] if optimizer else "adamw"
    # The first seed whose weights keep away from the rounding edges: there float32 and float64 take the same path,
    # and so must every correct implementation.
    seed, nearest = 0, 0.0
    while nearest < MARGIN:
        seed += 1
        model, tokens = draw(cfg, batch, seq, seed)
        single, nearest = run(model, tokens, torch.float32, optimizer)
    model, tokens = draw(cfg, batch, seq, seed)
    double, _ = run(model, tokens, torch.float64, optimizer)
    worst = {}
    for key, value in single.items():
        if value.is_floating_point():
            kind = ".".join(key.split(".")[:2]) if key.startswith("traj") else key.split(".")[0]
            worst[kind] = max(worst.get(kind, 0.0), ratio(value, double[key]))

    fields = asdict(cfg)
    config = {"arch": arch, "dim": fields.pop("dim")} | fields | {
        "batch": batch, "seq": seq, "steps": STEPS, "lr": LR, "betas": [0.9, 0.95], "eps": 1e-8,
        "weight_decay": 0.01, "clip": 1.0, "schedule": "constant", "seed": seed,
        "made_with": f"PyTorch {torch.__version__}, float32",
    }  # fmt: skip
    if optimizer != "adamw":
        matrix = ("matrix_lr", "momentum", "matrix_beta2", "matrix_weight_decay")
        config |= {"optimizer": optimizer} | {key: optimizers.SETTINGS[key] for key in matrix}
    path = HERE / f"{name}.safetensors"
    path.write_bytes(save({k: v.contiguous() for k, v in single.items()}, {"config": json.dumps(config)}))
    first, last = single["traj.losses"][[0, -1]].tolist()
    apart = ", ".join(f"{kind} {value:.0e}" for kind, value in worst.items() if kind != "param")
    print(f"{name}: {path.stat().st_size} bytes, seed {seed}, rounding margin {nearest:.1e}")
    print(f"    trajectory loss {first:.4f} -> {last:.4f}")
    print(f"    worst RMS ratio of float32 to float64: {apart}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        make(name)
