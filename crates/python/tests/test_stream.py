"""Streams: the same tokens as generation, states that come back, damage that is refused."""

from __future__ import annotations

import array
import random

import pytest

import flashlm

PROMPT = "One day, Lily"


def drawn(stream: flashlm.Stream, n: int) -> list[int]:
    ids = []
    for _ in range(n):
        ids.append(stream.sample())
        stream.feed(ids[-1:])
    return ids


def test_sampling_by_hand_gives_the_tokens_of_generate(model: flashlm.Model) -> None:
    settings = dict(temperature=0.9, top_p=0.9, repeat_penalty=1.2, frequency_penalty=0.1, seed=5)
    generation = model.generate(PROMPT, tokens=60, **settings)
    text = "".join(generation)
    stream = model.stream(**settings)
    assert stream.feed(PROMPT) == len(model.tokenizer.encode(PROMPT))
    ids = drawn(stream, len(generation.tokens))
    assert ids == generation.tokens
    assert model.tokenizer.decode(ids).startswith(text.rstrip("\ufffd"))


def test_logits_are_a_buffer_whose_softmax_is_what_score_tells(model: flashlm.Model) -> None:
    stream = model.stream()
    stream.feed(PROMPT)
    logits = stream.logits()
    assert (logits.format, logits.shape, logits.readonly) == ("f", (model.tokenizer.vocab_size,), True)
    numpy = pytest.importorskip("numpy")
    z = numpy.asarray(logits)
    assert z.dtype == numpy.float32 and not z.flags.owndata and z.tolist() == logits.tolist()
    wide = z.astype(numpy.float64)
    log_probs = wide - numpy.log(numpy.exp(wide).sum())
    [token] = model.score(" was", prompt=PROMPT, top=5)
    assert log_probs[token.id] == pytest.approx(token.logprob, abs=1e-6)
    assert [id for id, _ in token.top] == numpy.argsort(-z, kind="stable")[:5].tolist()


def test_a_state_comes_back_with_its_random_numbers(model: flashlm.Model) -> None:
    stream = model.stream(seed=9, repeat_penalty=1.1)
    stream.feed(PROMPT)
    drawn(stream, 10)
    saved, logits = stream.save(), stream.logits().tolist()
    ahead = drawn(stream, 30)
    stream.restore(saved)
    assert stream.logits().tolist() == logits and drawn(stream, 30) == ahead
    other = model.stream(seed=1, repeat_penalty=1.1)
    other.restore(saved)
    assert drawn(other, 30) == ahead and stream.save() == other.save()


def test_text_and_ids_are_the_same_and_pieces_the_whole(model: flashlm.Model) -> None:
    text = "The cat sat on the mat. " * 200
    ids = model.tokenizer.encode(text)
    streams = [model.stream() for _ in range(3)]
    streams[0].feed(text)
    streams[1].feed(array.array("H", ids))
    for at in range(0, len(ids), 7):
        streams[2].feed(ids[at : at + 7])
    assert streams[0].feed("") == streams[0].feed([]) == 0
    assert streams[0].save() == streams[1].save() == streams[2].save()


def test_damaged_states_are_refused_and_change_nothing(model: flashlm.Model) -> None:
    stream = model.stream()
    stream.feed(PROMPT)
    saved = stream.save()
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(saved)
        if rng.random() < 0.5:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            damaged[rng.randrange(100)] ^= 1 << rng.randrange(8)
        try:
            stream.restore(bytes(damaged))
        except flashlm.StreamError as error:
            assert "expected what save() returned" in str(error)
        else:
            # A changed random number or logit is as good as another.
            assert len(damaged) == len(saved)
            stream.sample()
            stream.restore(saved)
        assert stream.save() == saved
    with pytest.raises(flashlm.StreamError):
        stream.restore(b"")
    with pytest.raises(TypeError):
        stream.restore("text")  # type: ignore[arg-type]


def test_closed_streams_and_bad_ids(model: flashlm.Model) -> None:
    with model.stream() as stream:
        for ids in ([-1], [1 << 70], [model.tokenizer.vocab_size]):
            with pytest.raises(flashlm.SettingsError, match="expected an id of the vocabulary"):
                stream.feed(ids)
        with pytest.raises(TypeError):
            stream.feed([1.5])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            stream.feed(3)  # type: ignore[arg-type]
        with pytest.raises(UnicodeEncodeError):
            stream.feed("\ud800")
        assert stream.feed("ok") > 0
    for call in (stream.logits, stream.sample, stream.save, lambda: stream.feed("a"), lambda: stream.restore(b"")):
        with pytest.raises(flashlm.StreamError, match="this stream is closed"):
            call()
    stream.close()
    with pytest.raises(TypeError, match="has no argument \"tokens\""):
        model.stream(tokens=3)  # type: ignore[call-arg]
