"""A loaded model: the texts, log-probabilities and bits per byte of the program."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import flashlm
from conftest import interrupted, program

PROMPT = "Once upon a time"


def jsonl(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_texts_are_those_of_the_program(model: flashlm.Model) -> None:
    options = ["-n", 80, "-t", 0.9, "--top-k", 50, "--min-p", 0.01, "--repeat-penalty", 1.1, "--seed", 7, "--stop", "zebra"]
    told = jsonl(program("generate", "builtin", "-p", PROMPT, "--samples", 3, "--json", *options))
    for sample in told:
        settings = dict(tokens=80, temperature=0.9, top_k=50, min_p=0.01, repeat_penalty=1.1, stop=["zebra"])
        generation = model.generate(PROMPT, seed=sample["seed"], **settings)
        pieces = list(generation)
        assert "".join(pieces) == generation.text == sample["text"]
        assert len(pieces) > 20 and all(pieces)
        assert generation.finish == sample["finish"]
        assert generation.tokens == [token["id"] for token in sample["tokens"]]
        assert model.complete(PROMPT, seed=sample["seed"], **settings) == sample["text"]
    assert len({sample["text"] for sample in told}) == 3


def test_defaults_are_those_of_the_program(model: flashlm.Model) -> None:
    [told] = jsonl(program("generate", "builtin", "--json"))
    assert model.complete() == told["text"]


def test_a_long_prompt_is_read_in_pieces_with_the_same_text(model: flashlm.Model, tmp_path: Path) -> None:
    prompt = "The cat sat on the mat. " * 300
    (tmp_path / "prompt").write_text(prompt)
    [told] = jsonl(program("generate", "builtin", "--prompt-file", tmp_path / "prompt", "--json", "-n", 20))
    assert model.complete(prompt, tokens=20) == told["text"]


def test_log_probabilities_are_those_of_the_program(model: flashlm.Model) -> None:
    text = " there was a little girl. " * 100
    [told] = jsonl(program("score", "builtin", "-p", PROMPT, "-c", text, "--json"))
    scored = model.score(text, prompt=PROMPT, top=3, threads=2)
    assert [(t.id, t.text, t.logprob) for t in scored] == [(t["id"], t["text"], t["logprob"]) for t in told["tokens"]]
    for token in scored:
        logprobs = [logprob for _, logprob in token.top]
        assert len(logprobs) == 3 and logprobs == sorted(logprobs, reverse=True) and token.logprob <= logprobs[0]
        assert dict(token.top).get(token.id, token.logprob) == token.logprob
    assert model.score("") == []
    assert model.score(" a", top=0)[0].top == []


def test_bits_per_byte_are_those_of_the_program(model: flashlm.Model, stories: Path) -> None:
    told = json.loads(program("eval", "builtin", "--data", stories, "--json"))
    documents = [text.strip("\n") for text in stories.read_text().split("<|endoftext|>")]
    assert model.bpb(text for text in documents if text) == told["bpb"]
    whole = model.score(documents[0])
    bits = -sum(token.logprob for token in whole) / math.log(2)
    assert model.bpb(documents[0]) == pytest.approx(bits / len(documents[0].encode()), rel=1e-12)


def test_the_vocabulary(model: flashlm.Model) -> None:
    tokenizer = model.tokenizer
    text = "Écoute, said the 🐦.\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.decode(iter(ids)) == text
    tokens = tokenizer.tokens
    assert b"".join(tokens[id] for id in ids) == text.encode()
    assert len(tokens) == len(tokenizer) == tokenizer.vocab_size == model.config["vocab_size"]
    assert tokens[tokenizer.eos] == b"" and tokenizer.unk is None and tokenizer.kind == "bpe"
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("🐦")[:1])
    long = "word " * 50_000
    assert tokenizer.decode(tokenizer.encode(long)) == long


def test_eight_threads_write_the_same_texts(model: flashlm.Model) -> None:
    alone = [model.complete(PROMPT, tokens=60, seed=seed) for seed in range(8)]
    texts: dict[int, list[str]] = {seed: [] for seed in range(8)}

    def write(seed: int) -> None:
        texts[seed] = [model.complete(PROMPT, tokens=60, seed=seed) for _ in range(5)]
        texts[seed].append("".join(model.generate(PROMPT, tokens=60, seed=seed)))

    threads = [threading.Thread(target=write, args=[seed]) for seed in texts]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert texts == {seed: [alone[seed]] * 6 for seed in range(8)}


def test_ctrl_c_ends_every_call(model: flashlm.Model) -> None:
    endless = {"tokens": 10**6, "logit_bias": {model.tokenizer.eos: -100.0}}
    long = "The cat sat on the mat. " * 1_000_000
    ids = model.tokenizer.encode("The cat sat on the mat. ") * 10
    calls = {
        "complete": lambda: model.complete(PROMPT, **endless),
        "generate": lambda: list(model.generate(PROMPT, **endless)),
        "prompt": lambda: model.generate(long),
        "score": lambda: model.score(long),
        "bpb": lambda: model.bpb(long),
        "encode": lambda: [model.tokenizer.encode(long) for _ in range(50)],
        "feed": lambda: model.stream().feed(long),
        "texts without end": lambda: model.bpb(itertools.repeat("a text")),
        "ids without end": lambda: model.tokenizer.decode(itertools.cycle(ids)),
        "ids fed without end": lambda: model.stream().feed(itertools.cycle(ids)),
    }
    late = {name: seconds for name, call in calls.items() if (seconds := interrupted(call)) >= 0.1}
    assert not late
    assert model.complete(PROMPT, tokens=5)


def test_a_forked_process_goes_on(model: flashlm.Model) -> None:
    expected = model.complete(PROMPT, tokens=30)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, model.complete(PROMPT, tokens=30).encode())
        os._exit(0)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 1 << 16).decode() == expected


def test_pickling_is_refused_with_what_to_do_instead(model: flashlm.Model) -> None:
    things = {
        model: "load it by its path",
        model.tokenizer: "load its model",
        model.stream(): "save()",
        model.generate(): "its text",
    }
    for thing, instead in things.items():
        with pytest.raises(TypeError) as caught:
            pickle.dumps(thing)
        assert instead in str(caught.value)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    for path, words in [(tmp_path / "none", "none"), (tmp_path / "notes.txt", "found text"), (tmp_path, "expected a model")]:
        with pytest.raises(flashlm.ModelError, match=words) as caught:
            flashlm.load(path)
        assert str(path) in str(caught.value)
    damaged = tmp_path / "damaged.safetensors"
    flashlm.pack("builtin", damaged)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(flashlm.ModelError, match="cut short"):
        flashlm.load(damaged)
    for wrong in (None, 3, b"\xff"):
        with pytest.raises((TypeError, flashlm.ModelError)):
            flashlm.load(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"temperature": -1}, flashlm.SettingsError, "temperature: expected a number of at least 0, found -1"),
        ({"temperature": float("nan")}, flashlm.SettingsError, "temperature"),
        ({"temperature": 10**400}, flashlm.SettingsError, "temperature: expected a number"),
        ({"temperature": "hot"}, TypeError, "temperature: expected a number, found str"),
        ({"top_p": 0}, flashlm.SettingsError, "top_p"),
        ({"seed": -1}, flashlm.SettingsError, "seed: expected a whole number from 0 to 18446744073709551615, found -1"),
        ({"seed": 1 << 64}, flashlm.SettingsError, "seed"),
        ({"tokens": 10**30}, flashlm.SettingsError, "tokens: expected a whole number"),
        ({"tokens": 1.5}, TypeError, "tokens: expected a whole number, found float"),
        ({"top_k": None}, TypeError, "top_k"),
        ({"stop": 3}, TypeError, "stop: expected a text, or several, found int"),
        ({"stop": [b"x"]}, TypeError, "stop: expected texts, found bytes"),
        ({"stop": ["a"] * 1000}, flashlm.SettingsError, "stop"),
        ({"logit_bias": [1]}, TypeError, "logit_bias: expected a dict"),
        ({"logit_bias": {70_000: 1}}, flashlm.SettingsError, "70000 is not in the vocabulary"),
        ({"logit_bias": {"a whole sentence": 1}}, flashlm.SettingsError, "give a single token, or its id"),
        ({"logit_bias": {1: 1000}}, flashlm.SettingsError, "logit_bias"),
        ({"temprature": 1}, TypeError, "did you mean temperature?"),
        ({"colour": 1}, TypeError, "it takes temperature, top_k"),
    ],
)
def test_settings_that_are_refused(model: flashlm.Model, settings: dict, error: type, words: str) -> None:
    for call in (model.complete, model.generate):
        with pytest.raises(error) as caught:
            call(PROMPT, **settings)
        assert words in str(caught.value)


def test_arguments_that_are_refused(model: flashlm.Model) -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        model.complete("\ud800")
    with pytest.raises(UnicodeEncodeError):
        model.score("\udfff")
    with pytest.raises(TypeError):
        model.complete(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="surrogates|str"):
        model.bpb([3])  # type: ignore[list-item]
    with pytest.raises(flashlm.DataError, match="the text to score is empty"):
        model.bpb([])
    with pytest.raises(flashlm.SettingsError, match="between 1 and 1024"):
        model.score("a", threads=0)
    with pytest.raises(flashlm.SettingsError, match="top: expected a whole number"):
        model.score("a", top=-1)
    with pytest.raises(flashlm.SettingsError, match="expected an id of the vocabulary"):
        model.tokenizer.decode([1, 1 << 40])
    with pytest.raises(TypeError, match="token ids"):
        model.tokenizer.decode(["a"])  # type: ignore[list-item]
    assert issubclass(flashlm.SettingsError, ValueError) and issubclass(flashlm.SettingsError, flashlm.Error)


def test_a_text_belongs_to_one_thread_at_a_time(model: flashlm.Model) -> None:
    """Two threads at one text: each piece goes to one of them, or the other is told."""
    generation = model.generate(PROMPT, tokens=400, logit_bias={model.tokenizer.eos: -100.0})
    pieces: list[list[str]] = [[], []]

    def read(own: list[str]) -> None:
        while True:
            try:
                own.append(next(generation))
            except StopIteration:
                return
            except flashlm.StreamError as error:
                assert "another thread is at this text" in str(error)

    threads = [threading.Thread(target=read, args=[own]) for own in pieces]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sum(map(len, pieces)) > 100 and len(generation.text) == sum(map(len, pieces[0] + pieces[1]))


def test_memory_stays_flat(model: flashlm.Model) -> None:
    """The least resident memory during a second round of calls is that during the first, but for what the allocator keeps of a
    text or two: a leaked model would be 30 times 2 MB, 10 kB of each text 10 MB. `benches/python.py` has more of them."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc/self/statm: memory is not measured")

    def grown(n: int, work: Callable[[int], object]) -> float:
        def least() -> int:
            pages = []
            for i in range(n):
                work(i)
                pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
            return min(pages)

        least()
        before = least()
        return (least() - before) * os.sysconf("SC_PAGE_SIZE") / 1e6

    assert grown(30, lambda i: flashlm.load("builtin").complete("One", tokens=1)) < 5
    assert grown(1000, lambda i: model.complete("One", tokens=4, seed=i)) < 5
    assert grown(300, lambda i: model.stream(seed=i).feed("One day")) < 5
