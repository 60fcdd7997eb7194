"""The examples run, and the package shows what its documentation says."""

from __future__ import annotations

import doctest
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flashlm
from conftest import SMALL

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
SETTINGS = {key: value for key, value in SMALL.items() if key not in ("preset", "set")}


def test_train_on_your_text(stories: Path, tmp_path: Path, capsys: Any) -> None:
    import train_on_your_text

    written = train_on_your_text.main(str(stories), minutes=0.03, save_dir=str(tmp_path / "run"), **SMALL)
    told = capsys.readouterr().out
    assert "bits per byte in" in told and "saved in" in told and len(written) > 20


def test_compare_mixers(stories: Path, tmp_path: Path) -> None:
    import compare_mixers

    found = compare_mixers.main(str(stories), steps=3, folder=str(tmp_path), **SETTINGS)
    assert set(found) == {"conv", "delta", "attention"} and list(found.values()) == sorted(found.values())


def test_story_service(model: flashlm.Model) -> None:
    pytest.importorskip("flask")
    import story_service

    client = story_service.app.test_client()
    answer = client.get("/story", query_string={"prompt": "One day", "seed": 7, "tokens": 30})
    assert answer.status_code == 200 and answer.text == model.complete("One day", seed=7, tokens=30)
    refused = client.get("/story", query_string={"temperature": -1})
    assert refused.status_code == 400 and "temperature: expected" in refused.text


def test_lm_eval_model(model: flashlm.Model) -> None:
    pytest.importorskip("lm_eval")
    import lm_eval_model

    lm = lm_eval_model.FlashLM("builtin")
    requests = [SimpleNamespace(args=("Once upon a", " time")), SimpleNamespace(args=("Once upon a", " banana"))]
    (likely, greedy), (unlikely, _) = lm.loglikelihood(requests)
    assert greedy and likely > unlikely
    assert lm.loglikelihood_rolling([SimpleNamespace(args=("One day",))]) == [sum(t.logprob for t in model.score("One day"))]
    [text] = lm.generate_until([SimpleNamespace(args=("One day", {"max_gen_toks": 20, "until": ["."]}))])
    assert text == model.complete("One day", tokens=20, stop=["."], temperature=0.0)


def test_text_pipeline(model: flashlm.Model) -> None:
    import text_pipeline

    pipe = text_pipeline.TextGeneration("builtin")
    texts = pipe("One day", max_new_tokens=20, num_return_sequences=2, seed=3)
    expected = ["One day" + model.complete("One day", tokens=20, seed=seed) for seed in (3, 4)]
    assert [text["generated_text"] for text in texts] == expected


def test_the_examples_of_the_documentation_run(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctest.testmod(flashlm).attempted > 0 and doctest.testmod(flashlm).failed == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_bytes(stories.read_bytes())
    pages = [HERE.parents[2] / "README.md", HERE.parents[2] / "docs/python.md", HERE.parent / "README.md"]
    blocks = [block for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]
    assert len(blocks) >= 5
    # A run of a second instead of one of minutes.
    small = ", ".join(f"{key}={value!r}" for key, value in SMALL.items())
    for block in blocks:
        exec(re.sub(r"minutes=\d+", f"steps=10, {small}", block), {})


def test_every_name_is_documented() -> None:
    for name in flashlm.__all__:
        thing = getattr(flashlm, name)
        assert name == "__version__" or name == "Event" or thing.__doc__, name
        if isinstance(thing, type):
            for part, value in vars(thing).items():
                assert part.startswith("_") or not callable(value) or value.__doc__, f"{name}.{part}"
    assert json.loads(json.dumps(flashlm.load().config))["dim"] > 0
