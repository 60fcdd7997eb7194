"""Trains the same model with three token mixers and compares bits per byte: python compare_mixers.py TEXT [STEPS]"""

from __future__ import annotations

import sys
from pathlib import Path

import flashlm

MIXERS = ["conv", "delta", "attention"]


def main(text: str, steps: int = 300, folder: str = "mixers", **settings: object) -> dict[str, float]:
    """Bits per byte of each mixer on held-out text after the same steps, best first."""
    found = {}
    for mixer in MIXERS:
        run = {"preset": "flash-tiny", "steps": steps, "save_dir": Path(folder) / mixer, **settings}
        trainer = flashlm.train(text, set={"model.pattern": [mixer]}, quiet=True, **run)  # type: ignore[arg-type]
        assert trainer.result is not None
        found[mixer] = trainer.result["best"]["full"]["bpb"]
        print(f"{mixer:<10} {trainer.parameters:>10,} parameters  {found[mixer]:.4f} bits per byte")
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 300))
