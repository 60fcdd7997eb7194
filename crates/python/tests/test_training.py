"""Runs: the bits of the program, events, stop and resume, errors."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flashlm
from conftest import SMALL, as_options, interrupted, program

ENDLESS = {**SMALL, "steps": 10_000_000}


def newest(run: str | Path) -> Path:
    return max((Path(run) / "checkpoints").iterdir())


def test_parameters_after_50_steps_are_those_of_the_program(stories: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "steps": 50}
    program("train", "--data", stories, "--save-dir", tmp_path / "program", *as_options(settings))
    trainer = flashlm.Trainer(stories, save_dir=tmp_path / "python", **settings)
    assert trainer.run is None and trainer.result is None and trainer.share == 0
    events = list(trainer)
    ours, theirs = newest(tmp_path / "python"), newest(tmp_path / "program")
    assert ours.name == theirs.name
    for file in ("model.safetensors", "optimizer.safetensors", "tokenizer.json"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file

    kinds = {type(event).__name__ for event in events}
    assert kinds == {"TrainRow", "EvalRow", "Sample", "Checkpoint", "Note"}
    rows = [event for event in events if isinstance(event, flashlm.TrainRow)]
    assert [row.step for row in rows] == list(range(5, 51, 5)) and rows[-1].loss < rows[0].loss
    logged = [json.loads(line) for line in (tmp_path / "program/metrics.jsonl").read_text().splitlines()]
    assert [row.loss for row in rows] == [row["loss"] for row in logged if row["kind"] == "train"]
    saved = [event for event in events if isinstance(event, flashlm.Checkpoint)]
    assert saved and all(Path(event.path).is_dir() for event in saved[-1:]) and saved[-1].step == 50
    result = json.loads((tmp_path / "program/result.json").read_text())
    assert trainer.result is not None and trainer.result["best"] == result["best"]
    assert trainer.result["run"] == trainer.run == str(tmp_path / "python")
    assert trainer.share == 1.0 and trainer.parameters and trainer.settings["train"]["steps"] == 50
    own = trainer.load()
    assert own.complete("One", tokens=20) == flashlm.load(tmp_path / "program").complete("One", tokens=20)
    assert list(trainer) == []


def test_stop_saves_and_resume_gives_the_bits_of_one_run(stories: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "steps": 60}
    whole = flashlm.train(stories, save_dir=tmp_path / "whole", quiet=True, **settings)
    parted = flashlm.Trainer(stories, save_dir=tmp_path / "parted", **settings)
    for event in parted:
        if isinstance(event, flashlm.TrainRow) and event.step >= 20:
            parted.stop()
    assert parted.result is not None and parted.result["outcome"] == "interrupted" and parted.result["steps"] < 60
    resumed = flashlm.train(resume=tmp_path / "parted", quiet=True)
    assert resumed.run == parted.run
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (newest(str(whole.run)) / file).read_bytes() == (newest(tmp_path / "parted") / file).read_bytes()
    with pytest.raises(flashlm.TrainingError, match="is finished at step 60"):
        flashlm.Trainer(resume=tmp_path / "parted")


def test_texts_of_the_program_are_documents(tmp_path: Path) -> None:
    texts = [f"Story {n}: the cat sat on the mat and said <|endoftext|> is no end. " * 5 for n in range(100)]
    trainer = flashlm.train(
        iter(texts), valid=texts[:3] + ["another"], save_dir=tmp_path / "run", steps=2, quiet=True, **SMALL
    )
    source = Path(trainer.settings["data"]["source"])
    assert [json.loads(line)["text"] for line in source.read_text().splitlines()] == texts
    for path in (tmp_path / "a.txt", tmp_path / "b.txt"):
        path.write_text("words of a file\n" * 400)
    files = flashlm.Trainer([tmp_path / "a.txt", tmp_path / "b.txt"], save_dir=tmp_path / "files", steps=1, **SMALL)
    assert "a.txt\n" in files.settings["data"]["source"]

    def failing() -> Any:
        yield "text"
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        flashlm.Trainer(failing(), steps=1, **SMALL)
    with pytest.raises(UnicodeEncodeError):
        flashlm.Trainer(["\ud800"], steps=1, **SMALL)
    assert not list(Path(os.environ["FLASHLM_CACHE"]).glob("texts-*.new"))


def test_ctrl_c_saves_and_an_ended_loop_stops(stories: Path, tmp_path: Path) -> None:
    runs, begun = itertools.count(), threading.Event()

    def endless() -> None:
        for _ in flashlm.Trainer(stories, save_dir=tmp_path / f"run{next(runs)}", **ENDLESS):
            pass

    assert interrupted(endless) < 0.1

    # In one call, too; what has been trained is saved meanwhile.
    def one_call() -> None:
        def on_event(event: flashlm.Event) -> None:
            if isinstance(event, flashlm.TrainRow):
                begun.set()

        flashlm.train(stories, save_dir=tmp_path / f"run{next(runs)}", quiet=True, on_event=on_event, **ENDLESS)

    assert interrupted(one_call, begun=begun) < 0.1
    last, deadline = tmp_path / f"run{next(runs) - 1}", time.monotonic() + 60
    while not list((last / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert newest(last).is_dir()
    # A text that does not end, of the program's own and of C.
    assert interrupted(lambda: flashlm.Trainer(itertools.repeat("a text "), **ENDLESS)) < 0.1
    assert interrupted(lambda: flashlm.Trainer((f"text {n}" for n in itertools.count()), **ENDLESS)) < 0.1

    class Endless(list[str]):
        def __iter__(self) -> Iterator[str]:
            return itertools.repeat("One")

    prompts = {**ENDLESS["set"], "train.prompts": Endless()}
    assert interrupted(lambda: flashlm.Trainer(stories, **{**ENDLESS, "set": prompts})) < 0.1
    with flashlm.Trainer(stories, save_dir=tmp_path / "with", **ENDLESS) as trainer:
        for event in trainer:
            if isinstance(event, flashlm.TrainRow):
                break
    step = int(newest(tmp_path / "with").name.split("-")[-1])
    assert step >= 5
    # The process does not end before the run is saved.
    script = (
        "import flashlm, json, sys\n"
        "settings = json.loads(sys.argv[1])\n"
        "for event in flashlm.Trainer(sys.argv[2], save_dir=sys.argv[3], **settings):\n"
        "    if isinstance(event, flashlm.TrainRow): break\n"
    )
    args = [sys.executable, "-c", script, json.dumps(ENDLESS), str(stories), str(tmp_path / "exit")]
    subprocess.run(args, check=True, timeout=60)
    assert newest(tmp_path / "exit").is_dir()
    assert json.loads(program("info", tmp_path / "exit", "--json"))


def test_a_slow_loop_does_not_hold_the_run_up(stories: Path, tmp_path: Path) -> None:
    trainer = flashlm.Trainer(stories, save_dir=tmp_path / "run", **{**SMALL, "steps": 50})
    events = iter(trainer)
    for event in events:
        if isinstance(event, flashlm.TrainRow):
            break
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/result.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "run/result.json").exists()
    assert [event.step for event in events if isinstance(event, flashlm.TrainRow)][-1] == 50


def test_a_notebook_gets_a_bar_and_a_curve(stories: Path, tmp_path: Path) -> None:
    trainer = flashlm.Trainer(stories, save_dir=tmp_path / "run", **{**SMALL, "steps": 30})
    assert trainer._repr_html_().startswith("<progress value=\"0.0000\"")
    for _ in trainer:
        pass
    html = trainer._repr_html_()
    assert html.startswith("<progress value=\"1.0000\"") and "<svg" in html and "bits per byte" in html
    assert repr(trainer).startswith(f"<flashlm.Trainer {tmp_path / 'run'}")
    # The picture is the one that the run itself drew.
    assert (tmp_path / "run/curve.svg").read_text().split("<path")[-1] in html


def test_train_tells_its_progress_and_a_callback_stops_it(stories: Path, tmp_path: Path, capfd: Any) -> None:
    seen = []

    def on_event(event: flashlm.Event) -> bool:
        seen.append(event)
        return isinstance(event, flashlm.TrainRow) and event.step >= 10

    trainer = flashlm.train(stories, save_dir=tmp_path / "run", on_event=on_event, **ENDLESS)
    assert trainer.result is not None and trainer.result["outcome"] == "interrupted" and seen
    told = capfd.readouterr()
    assert told.out == "" and "bits per byte" in told.err and "\x1b" not in told.err


def test_runs_that_are_refused(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    cases: list[tuple[dict[str, Any], type, str]] = [
        ({"minuts": 1}, TypeError, "did you mean minutes?"),
        ({"minutes": -1}, flashlm.SettingsError, "--minutes -1: must be above 0"),
        ({"minutes": "soon"}, flashlm.SettingsError, "invalid value 'soon' for '--minutes <M>'"),
        ({"steps": 1 << 70}, flashlm.SettingsError, "--steps"),
        ({"steps": True}, TypeError, "steps: expected a number"),
        ({"lr": [1]}, TypeError, "lr: expected a number, a text or a path, found list"),
        ({"preset": "flash-huge"}, flashlm.SettingsError, "flash-huge"),
        ({"set": {"model.dims": 3}}, flashlm.SettingsError, "unknown key"),
        ({"set": {"train.lr": object()}}, TypeError, "train.lr: expected a number"),
        ({"set": {"model.pattern": ["lstm"]}}, flashlm.SettingsError, "lstm"),
        ({"set": {"model.mixer": "delta"}}, flashlm.SettingsError, "set model.pattern = [\"delta\"] instead"),
        ({"resume": tmp_path / "none"}, flashlm.ModelError, "none"),
        ({"from_model": stories}, flashlm.ModelError, "found text"),
        ({"save_dir": taken}, flashlm.TrainingError, str(taken)),
        ({"config": tmp_path / "none.toml"}, flashlm.Error, "none.toml"),
    ]
    for settings, error, words in cases:
        with pytest.raises(error) as caught:
            list(flashlm.Trainer(stories, **{"preset": "flash-tiny", "steps": 1, **settings}))
        assert words in str(caught.value), settings
    data: list[tuple[Any, type, str]] = [
        (tmp_path / "missing.txt", flashlm.DataError, "no such file or folder"),
        (tmp_path / "empty.txt", flashlm.DataError, "the file is empty"),
        ("-", flashlm.SettingsError, "standard input"),
        ([], flashlm.SettingsError, "there is no text"),
        (3, TypeError, "data: expected a path"),
        (b"bytes", TypeError, "data: expected a path"),
        ([3], TypeError, "str"),
    ]
    for text, error, words in data:
        with pytest.raises(error) as caught:
            list(flashlm.Trainer(text, preset="flash-tiny", steps=1, save_dir=tmp_path / "never"))
        assert words in str(caught.value), text
    assert not (tmp_path / "never/checkpoints").exists() and list(taken.iterdir()) == [taken / "mine.txt"]


def test_a_run_belongs_to_its_process(stories: Path, tmp_path: Path) -> None:
    trainer = flashlm.Trainer(stories, save_dir=tmp_path / "run", **{**SMALL, "steps": 5})
    with pytest.raises(TypeError, match="resume=trainer.run"):
        pickle.dumps(trainer)
    with pytest.raises(flashlm.TrainingError, match="has not begun"):
        trainer.load()
    next(trainer)
    child = os.fork()
    if child == 0:
        try:
            next(trainer)
        except flashlm.TrainingError as error:
            os._exit(0 if "belongs to the process that began it" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    list(trainer)
