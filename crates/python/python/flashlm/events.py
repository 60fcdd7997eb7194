"""What a run tells while it trains, and what a model tells of a token. Losses are in nats per token, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainRow:
    """Training since the row before: means, and totals since the run began."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    elapsed: float
    epoch: float
    seq_len: int
    stage: int
    sources: dict[str, float]


@dataclass(frozen=True)
class EvalRow:
    """A validation; ``bpb`` is in bits per byte, ``best`` whether none before was better."""

    step: int
    tokens: int
    elapsed: float
    loss: float
    bpb: float
    best: bool


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote: ``text`` goes on from ``prompt``."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint has been written."""

    step: int
    path: str


@dataclass(frozen=True)
class Note:
    """A remark of the run in words."""

    text: str


Event = TrainRow | EvalRow | Sample | Checkpoint | Note


@dataclass(frozen=True)
class ScoredToken:
    """A token of a text: ``logprob`` is the natural logarithm of its probability, ``top`` the likeliest ids and theirs."""

    id: int
    text: str
    logprob: float
    top: list[tuple[int, float]]
