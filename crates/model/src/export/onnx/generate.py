"""Writes with the model beside this file: python generate.py "Once upon a time" (pip install numpy onnxruntime tokenizers)."""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

here = Path(__file__).parent
tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))
model = onnxruntime.InferenceSession(str(here / "model.onnx"))
about = model.get_modelmeta().custom_metadata_map
eos, known = int(about["eos"]), json.loads(about["ids"])  # our id of each of the tokenizer's, where they differ
back = {ours: theirs for theirs, ours in enumerate(known) if ours > 3}  # 0 to 3 are no text
types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
states = {i.name: np.zeros(i.shape, types[i.type]) for i in model.get_inputs() if i.name != "ids"}
outputs = [o.name for o in model.get_outputs()]
ids = tokenizer.encode(sys.argv[1] if len(sys.argv) > 1 else "", add_special_tokens=False).ids
text, rng, next_ids = list(ids), np.random.default_rng(), [eos] + [known[i] if known else i for i in ids]
for _ in range(200):
    for i in range(0, len(next_ids), 256):  # memory grows with the tokens of one run
        logits, *new = model.run(outputs, {"ids": np.array([next_ids[i : i + 256]], np.int64), **states})
        states = {name.removeprefix("next."): state for name, state in zip(outputs[1:], new)}
    z = logits[0, -1] / 0.8  # temperature
    p = np.exp(z - z.max())
    next_ids = [int(rng.choice(len(p), p=p / p.sum()))]
    if next_ids[0] == eos:
        break
    text += [back[i] for i in next_ids if i in back] if known else next_ids
print(tokenizer.decode(text))
