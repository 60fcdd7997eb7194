"""FlashLM: train and run small ternary language models on the CPU you have.

>>> import flashlm
>>> model = flashlm.load("builtin")
>>> text = model.complete("Once upon a time", tokens=50)

The same texts and bits as the program ``flashlm`` with the same settings and seed. Calls compute without the interpreter's lock, and
Ctrl-C ends each at once. A ``Model`` may be shared between threads; a ``Stream``, ``Generation`` or ``Trainer`` belongs to one at a
time.
"""

import atexit

from ._flashlm import Generation, Model, Stream, Tokenizer, Trainer, __version__, export, finish_all, load, pack, verify
from .errors import DataError, Error, ModelError, SettingsError, StreamError, TrainingError
from .events import Checkpoint, EvalRow, Event, Note, Sample, ScoredToken, TrainRow
from .training import train

__all__ = [
    "Checkpoint",
    "DataError",
    "Error",
    "EvalRow",
    "Event",
    "Generation",
    "Model",
    "ModelError",
    "Note",
    "Sample",
    "ScoredToken",
    "SettingsError",
    "Stream",
    "StreamError",
    "Tokenizer",
    "TrainRow",
    "Trainer",
    "TrainingError",
    "__version__",
    "export",
    "load",
    "pack",
    "train",
    "verify",
]

atexit.register(finish_all)
