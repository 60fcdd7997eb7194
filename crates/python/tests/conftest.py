"""What the tests share: the model of the package, and the program to compare with (FLASHLM_PROGRAM, else that of the wheel)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flashlm

# A model of some ten thousand parameters, trained in a second.
SMALL: dict[str, Any] = {
    "preset": "flash-tiny",
    "tokenizer": "bytes",
    "batch": 2,
    "threads": 2,
    "set": {"model.dim": 32, "model.blocks": 1, "model.ffn_hidden": 48, "train.seq_len": 64, "train.log_every": 5},
}

# What every format of exports can express.
PLAIN: dict[str, Any] = {
    "model.pattern": ["shortconv", "attention"], "model.sub_norm": False, "model.x0": False, "model.bigram": 0, "model.layer_embeddings": False,
    "model.pointer": 0,
}


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """Scripts that run in the background of a shell ignore Ctrl-C, and so would Python."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["FLASHLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def model() -> flashlm.Model:
    return flashlm.load("builtin")


def program(*args: object, code: int = 0) -> str:
    """What the program prints on stdout."""
    name = os.environ.get("FLASHLM_PROGRAM")
    command = [name] if name else [sys.executable, "-m", "flashlm"]
    done = subprocess.run([*command, *map(str, args)], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == code, done.stderr
    return done.stdout


def as_options(settings: dict[str, Any]) -> list[str]:
    """The same settings as options of the program."""
    options = []
    for name, value in settings.items():
        if name == "set":
            options += [f"--set={key}={json.dumps(value)}" for key, value in value.items()]
        else:
            options.append(f"--{name.replace('_', '-')}={value}")
    return options


def interrupted(call: Callable[[], object], after: float = 0.2, begun: threading.Event | None = None) -> float:
    """Seconds from Ctrl-C, pressed ``after`` the call began or once ``begun`` is set, to ``KeyboardInterrupt``: the least of up to five, since
    a busy machine may be late (the median: benches/python.py). A call that ends before is made again."""
    least = float("inf")
    for _ in range(5):
        sent = []
        if begun:
            begun.clear()

        def press() -> None:
            begun.wait(60) if begun else time.sleep(after)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), 2)

        presser = threading.Thread(target=press)
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            until = time.perf_counter() + 90
            while time.perf_counter() < until:
                call()
        least = min(least, time.perf_counter() - sent[0])
        presser.join()
        if least < 0.1:
            break
    return least


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step whose model of 5 million parameters takes a while to be read, packed and exported."""
    path = tmp_path_factory.mktemp("large")
    (path / "text.txt").write_text("The cat sat on the mat and looked at the dog.\n" * 100)
    size = {"model.dim": 512, "model.blocks": 2, "model.ffn_hidden": 1024, "train.seq_len": 8, "train.eval_tokens": 100}
    settings = {**SMALL, "set": {**size, **PLAIN, "train.optimizer": "adamw"}, "batch": 1, "steps": 1}
    flashlm.train(path / "text.txt", save_dir=path / "run", quiet=True, **settings)
    return path / "run"


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 300 made-up stories."""
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text(program("data", "sample", "synthetic:300", "-n", "300"), encoding="utf-8")
    return path
