"""Trains a model on your own text and lets it write: python train_on_your_text.py BOOK.txt [MINUTES]"""

from __future__ import annotations

import sys

import flashlm


def main(text: str, minutes: float = 2.0, save_dir: str | None = None, **settings: object) -> str:
    """Trains on the file or folder `text`, and returns what the model goes on with after the first prompt of its samples."""
    run = {"minutes": minutes, "save_dir": save_dir, **settings}
    with flashlm.Trainer(text, **run) as trainer:  # type: ignore[arg-type]
        for event in trainer:
            match event:
                case flashlm.EvalRow(step=step, bpb=bpb, best=best):
                    print(f"step {step}: {bpb:.3f} bits per byte{' (best)' if best else ''}")
                case flashlm.Sample(prompt=prompt, text=written):
                    print(f"--- {prompt}{written}")
                case flashlm.Checkpoint(path=path):
                    print(f"saved in {path}")
    assert trainer.result is not None
    print(f"{trainer.result['best']['full']['bpb']:.3f} bits per byte in {trainer.result['seconds']:.0f} s")
    first: str = trainer.settings["train"]["prompts"][0]
    return first + trainer.load().complete(first, tokens=100)


if __name__ == "__main__":
    print(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 2.0))
