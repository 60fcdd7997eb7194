"""Training in one call: a line of progress on a terminal, a bar and a curve in a notebook."""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Mapping

from ._flashlm import Trainer
from .events import EvalRow, Event, Note, Sample

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import Data, Settings

REDRAW = 2.0
"""Seconds between two pictures in a notebook."""


def train(
    data: Data | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    on_event: Callable[[Event], object] | None = None,
    quiet: bool = False,
    **settings: Unpack[Settings],
) -> Trainer:
    """Trains to the end and returns the finished run: ``train(...).load()`` is the model, ``.result`` what it came to.

    The arguments are those of ``Trainer``. ``on_event`` is called with each event, and may return True to stop the run.
    ``quiet`` shows nothing. Ctrl-C saves what has been trained and raises ``KeyboardInterrupt``.
    """
    trainer = Trainer(data, set=set, **settings)
    show = _nothing if quiet else _in_notebook() or _on_terminal
    with trainer:
        for event in trainer:
            if on_event is not None and on_event(event) is True:
                trainer.stop()
            show(trainer, event)
        show(trainer, None)
    return trainer


def _nothing(trainer: Trainer, event: Event | None) -> None:
    pass


def _on_terminal(trainer: Trainer, event: Event | None) -> None:
    """Lines that stay, and on a terminal the line of progress below them."""
    out = sys.stderr
    clear = "\r\x1b[2K" if out.isatty() else ""
    if isinstance(event, Note):
        out.write(f"{clear}{event.text}\n")
    elif isinstance(event, EvalRow):
        best = " (best)" if event.best else ""
        out.write(f"{clear}step {event.step}: validation {event.bpb:.4f} bits per byte{best}\n")
    elif isinstance(event, Sample):
        out.write(f"{clear}--- step {event.step}\n{event.prompt}{event.text}\n")
    if clear:
        out.write(clear + (trainer.progress[:79] if event is not None else ""))
    out.flush()


def _in_notebook() -> Callable[[Trainer, Event | None], None] | None:
    """A display that is drawn again as the run goes on, in a notebook."""
    if "ipykernel" not in sys.modules:
        return None
    display = importlib.import_module("IPython.display").display
    handle: Any = None
    drawn = 0.0

    def show(trainer: Trainer, event: Event | None) -> None:
        nonlocal handle, drawn
        if handle is None:
            handle = display(trainer, display_id=True)
        elif event is None or time.monotonic() - drawn > REDRAW:
            handle.update(trainer)
            drawn = time.monotonic()

    return show
