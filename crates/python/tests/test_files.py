"""Packing, exports, test vectors, and the command line of the wheel."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

import flashlm
from conftest import PLAIN, SMALL, interrupted, program

ROOT = Path(__file__).resolve().parents[3]


def test_pack_and_export_write_what_the_program_writes(tmp_path: Path) -> None:
    packed = flashlm.pack("builtin", tmp_path / "model.safetensors")
    assert packed["file_size"] == (tmp_path / "model.safetensors").stat().st_size
    again = flashlm.load(tmp_path / "model.safetensors")
    assert again.complete("One", tokens=10) == flashlm.load().complete("One", tokens=10)
    assert again.parameters == packed["parameters"] and 0 < again.memory < 1 << 24
    exported = flashlm.export("safetensors", "builtin", tmp_path / "ours.safetensors")
    program("export", "safetensors", "builtin", "-o", tmp_path / "theirs.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert exported["format"] == "safetensors" and exported["weights"] == "f32"
    before = (tmp_path / "ours.safetensors").read_bytes()
    with pytest.raises(flashlm.Error, match="already exists"):
        flashlm.export("c", "builtin", tmp_path / "ours.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == before
    flashlm.export("c", "builtin", tmp_path / "ours.safetensors", force=True)
    assert (tmp_path / "ours.safetensors").read_bytes() != before
    for call, words in [
        (lambda: flashlm.export("exe", "builtin", tmp_path / "x"), "invalid value 'exe'"),
        (lambda: flashlm.export("c", "builtin", tmp_path / "x", weights="f64"), "--weights f64: c has packed"),
        (lambda: flashlm.pack(tmp_path / "model.safetensors", tmp_path / "y"), "already packed"),
        (lambda: flashlm.pack("builtin", tmp_path / "none/y"), "none"),
        (lambda: flashlm.pack("builtin", tmp_path / "y", ternary_bits=3), "ternary-bits"),
    ]:
        with pytest.raises(flashlm.Error) as caught:
            call()
        assert words in str(caught.value)
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


FORMATS = {"c": "packed", "web": "packed", "safetensors": "f32", "gguf": "q2_0", "hf": "f32", "onnx": "f32"}


def files(path: Path) -> dict[str, bytes]:
    """What an export has written, by name."""
    return {str(file.relative_to(path)): file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}


@pytest.fixture(scope="module")
def own(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small model that every format can express."""
    path = tmp_path_factory.mktemp("own") / "run"
    size = {"model.dim": 128, "model.ffn_hidden": 256, "model.blocks": 2}
    settings = {**SMALL, "set": {**SMALL["set"], **PLAIN, **size}, "steps": 3}
    flashlm.train(stories, save_dir=path, quiet=True, **settings)
    return path


def test_every_format_is_what_the_program_writes(own: Path, tmp_path: Path) -> None:
    help = program("export", "--help")
    formats = re.findall(r"^ +- (\w+):", help, re.M)
    assert set(formats) == set(FORMATS), help
    for name in formats:
        told = flashlm.export(name, own, tmp_path / f"ours-{name}")
        program("export", name, own, "-o", tmp_path / f"theirs-{name}")
        ours, theirs = files(tmp_path / f"ours-{name}"), files(tmp_path / f"theirs-{name}")
        assert ours and ours == theirs, name
        assert told["file_size"] == sum(map(len, ours.values())) and told["weights"] == FORMATS[name], name
    with pytest.raises(flashlm.Error, match="is a folder, not a file"):
        flashlm.export("hf", own, tmp_path / "ours-hf", force=True)


def test_ctrl_c_ends_reading_and_writing_and_leaves_no_half_file(large: Path, tmp_path: Path) -> None:
    vectors = ROOT / "tests/reference/relu2_subnorm_zero_init.safetensors"
    reads = {"load": lambda: flashlm.load(large), "verify": lambda: flashlm.verify(vectors)}
    writes = {
        "pack": lambda path: flashlm.pack(large, path),
        "export": lambda path: flashlm.export("safetensors", large, path),
        "folder": lambda path: flashlm.export("hf", large, path),
    }
    late = {name: seconds for name, call in reads.items() if (seconds := interrupted(call, 0.15)) >= 0.1}
    for name, call in writes.items():
        call(tmp_path / name)
        numbers = count()
        if (seconds := interrupted(lambda: call(tmp_path / f"{name}-{next(numbers)}"), 0.15)) >= 0.1:
            late[name] = seconds
    assert not late

    def whole(path: Path) -> bool:
        """A call that had written all when it was interrupted leaves it."""
        try:
            return files(path) == files(tmp_path / path.name.split("-")[0])
        except FileNotFoundError:
            return False

    # What was interrupted goes on to the place where it looks, and removes there what it has written.
    deadline = time.monotonic() + 10
    while (half := {path.name for path in tmp_path.iterdir() if not whole(path)}) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not half


def test_vectors(tmp_path: Path) -> None:
    [vectors, *_] = sorted((ROOT / "tests/reference").glob("relu2_subnorm.safetensors"))
    found = flashlm.verify(vectors)
    told = json.loads(program("verify", vectors, "--json"))
    assert found["pass"] is True and found["checks"] == told["checks"]
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(flashlm.Error, match="expected test vectors"):
        flashlm.verify(tmp_path / "no.safetensors")
    with pytest.raises(flashlm.SettingsError, match="precision: expected one of"):
        flashlm.verify(vectors, precision="f16")


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "flashlm", *map(str, args)]


ENDLESS = """
import flashlm, itertools, sys
for n in itertools.count():
    WORK
"""


@pytest.mark.parametrize("way", ["pack", "export", "texts", "command file", "command folder"])
def test_a_process_that_ctrl_c_ends_leaves_no_half_file(way: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLM_CACHE", str(tmp_path))
    work = {
        "pack": "flashlm.pack(sys.argv[1], sys.argv[2], force=True)",
        "export": "flashlm.export('hf', sys.argv[1], f'{sys.argv[2]}-{n}')",
        "texts": "flashlm.Trainer(f'text {n} ' * 1000 for n in itertools.count())",
    }
    interrupted = 0
    for attempt in range(20):
        out = tmp_path / f"out{attempt}"
        args = [sys.executable, "-c", ENDLESS.replace("WORK", work.get(way, "")), str(large), str(out)]
        if way.startswith("command"):
            args = command("export", "safetensors" if way == "command file" else "hf", large, "-o", out)
        process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        # While a file is being written.
        while process.poll() is None and not list(tmp_path.glob(".tmp-*")):
            pass
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert not list(tmp_path.glob(".tmp-*")), told
        if process.returncode:
            assert process.returncode == (130 if way.startswith("command") else -signal.SIGINT), told
            assert not way.startswith("command") or not out.exists(), told
            interrupted += 1
        if interrupted == 2:
            break
    assert interrupted, "each file was whole before Ctrl-C"


def test_the_command_is_the_program(tmp_path: Path) -> None:
    done = subprocess.run(command("generate", "builtin", "-p", "One", "-n", 30), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == program("generate", "builtin", "-p", "One", "-n", 30)
    script = Path(sys.executable).with_name("flashlm")
    told = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert told.strip() == f"flashlm {flashlm.__version__}"
    bad = subprocess.run(command("train", "--learning-rate", "1"), capture_output=True, text=True)
    assert bad.returncode == 2 and "--lr" in bad.stderr
    missing = subprocess.run(command("info", tmp_path / "none"), capture_output=True, text=True)
    assert missing.returncode == 1 and "error: " in missing.stderr


def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    eos = flashlm.load().tokenizer.eos
    endless = command("generate", "builtin", "-n", 10**9, "--logit-bias", f"{eos}=-100")
    process = subprocess.Popen(endless, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    run = command("train", "--data", "synthetic:300", "--preset", "flash-tiny", "--steps", 10**6, "-o", tmp_path / "run")
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130 and "flashlm train --resume" in (process.stderr.read() if process.stderr else "")
    assert os.listdir(tmp_path / "run/checkpoints")
