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
from conftest import SMALL, as_options, program

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
    told = {}
    options = ["--preset", "flash-tiny", "--steps", 3, *as_options(SETTINGS)]
    for mixer in ("conv", "delta", "attention"):
        program("train", "--data", stories, "--save-dir", tmp_path / f"own-{mixer}", "--set", f'model.pattern=["{mixer}"]', *options)
        told[mixer] = json.loads((tmp_path / f"own-{mixer}/result.json").read_text())["best"]["full"]["bpb"]
    assert list(found.items()) == sorted(told.items(), key=lambda pair: pair[1])
    assert len(set(found.values())) == 3 and flashlm.load(tmp_path / "delta").config["pattern"] == ["delta"]


def test_story_service(model: flashlm.Model) -> None:
    pytest.importorskip("flask")
    import story_service

    client = story_service.app.test_client()
    answer = client.get("/story", query_string={"prompt": "One day", "seed": 7, "tokens": 30})
    assert answer.status_code == 200 and answer.text == model.complete("One day", seed=7, tokens=30)
    # A reader that leaves early, as browsers do.
    with client.get("/story", query_string={"prompt": "One day", "tokens": 200}) as left:
        assert left.status_code == 200 and next(iter(left.response))
    refused = client.get("/story", query_string={"temperature": -1})
    assert refused.status_code == 400 and "temperature: expected" in refused.text


TASK = """
task: book
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{prompt}"
doc_to_target: "{target}"
{more}
metadata: {{version: 1}}
"""


def evaluated(folder: Path, name: str, rows: list[dict[str, Any]], **task: str) -> dict[str, float]:
    """What lm-evaluation-harness finds of the example's model on a task of these rows."""
    import lm_eval_model
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    (folder / name).mkdir()
    (folder / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / name / "task.yaml").write_text(TASK.format(path=folder / name / "rows.jsonl", **task))
    manager = TaskManager(include_path=str(folder / name), include_defaults=False)
    found: dict[str, float] = simple_evaluate(lm_eval_model.FlashLM("builtin"), tasks=["book"], task_manager=manager)["results"]["book"]
    return found


def test_lm_eval_finds_what_the_program_finds(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    texts = [text.strip("\n") for text in stories.read_text().split("<|endoftext|>")]
    texts = [text for text in texts if text][:50]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    told = json.loads(program("eval", "builtin", "--data", tmp_path / "some.jsonl", "--json"))["bpb"]
    found = evaluated(
        tmp_path, "rolling", [{"text": text} for text in texts], kind="loglikelihood_rolling", prompt="", target="{{text}}",
        more="metric_list: [{metric: bits_per_byte}]",
    )
    assert found["bits_per_byte,none"] == pytest.approx(told, abs=1e-9)
    # The choice that the program gives the higher log-probability, each time.
    rows = [{"prompt": text[:80], "choices": [" the", " a", text[80:90]], "label": 2} for text in texts]
    right = 0
    for row in rows:
        lines = program("score", "builtin", "-p", row["prompt"], *(part for choice in row["choices"] for part in ("-c", choice)), "--json")
        sums = [json.loads(line)["logprob"] for line in lines.splitlines()]
        right += sums.index(max(sums)) == 2
    found = evaluated(
        tmp_path, "choices", rows, kind="multiple_choice", prompt="{{prompt}}", target="{{label}}",
        more='doc_to_choice: "{{choices}}"\ntarget_delimiter: ""\nmetric_list: [{metric: acc}]',
    )
    assert found["acc,none"] == pytest.approx(right / len(rows), abs=1e-9) and 0 < right


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
