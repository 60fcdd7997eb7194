"""A training run of the original scripts, continued in PyTorch: losses of 20 steps from a checkpoint of `torch.save`.

    python resume.py CHECKPOINT.pt resume.safetensors

The file holds `batches` `[4, 2, T+1]` (i32), used in turn, and `losses` `[20]` (f64); constant learning rate, global-norm clip 1.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benches" / "pytorch"))
from v4 import Config, Model, make_loss, train_step  # noqa: E402

STEPS, BATCHES, BATCH = 20, 4, 2


def main(checkpoint: str, out: str):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    saved = torch.load(checkpoint, weights_only=True)
    c = saved["config"]
    model = Model(Config(c["vocab_size"], c["dim"], c["n_blocks"], c["glu_hidden"], c["kernel_size"]))
    state = {name: w for name, w in saved["model_state_dict"].items() if name != "head.weight"}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"head.weight"}, missing
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    loss_fn = make_loss(model, "eager")
    batches = torch.randint(0, c["vocab_size"], (BATCHES, BATCH, c["seq_len"] + 1))
    turns = [batches[step % BATCHES] for step in range(STEPS)]
    losses = [train_step(model, loss_fn, optimizer, b[:, :-1], b[:, 1:])[0].item() for b in turns]
    print(" ".join(f"{loss:.6f}" for loss in losses))
    save_file({"batches": batches.int(), "losses": torch.tensor(losses, dtype=torch.float64)}, out)


main(*sys.argv[1:])
