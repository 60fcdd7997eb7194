"""The arguments of a run. Each is an option of ``flashlm train``, which has the same default."""

from __future__ import annotations

from os import PathLike
from typing import Iterable, TypedDict, Union

Path = Union[str, "PathLike[str]"]
"""A path."""

Data = Union[Path, Iterable[str], Iterable["PathLike[str]"]]
"""A path, a folder, the name of a dataset, or texts: one for each document."""


class Settings(TypedDict, total=False):
    """Keyword arguments of ``Trainer`` and ``train``."""

    minutes: float | None
    hours: float | None
    steps: int | None
    epochs: float | None
    preset: str | None
    params: int | str | None
    config: Path | None
    batch: int | None
    lr: float | None
    seed: int | None
    precision: str | None
    threads: int | None
    column: str | None
    valid: Data | None
    tokenizer: Path | None
    vocab: int | None
    save_dir: Path | None
    resume: Path | None
    from_model: Path | None
    offline: bool
