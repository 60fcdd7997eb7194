"""The official clients against the real program: `openai` for Python and Node (typed answers and errors, streams) and `lm-eval` (rolling
bits per byte as `flashlm eval` measures them, multiple choice as `flashlm score` does, texts as `flashlm generate` writes them).

    tests/clients/check.py target/release/flashlm      # wants: pip install openai "lm-eval[api]"; and npm install openai, check.mjs
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import openai
    from lm_eval.api.instance import Instance
    from lm_eval.models.gguf import GGUFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI
except ImportError as missing:
    print(f"skipped: {missing}; pip install openai 'lm-eval[api]'")
    sys.exit(0)

TEXT = "Once upon a time there was a little dog. It liked to run in the park.\n\n\"Hello,\" said the cat. \"Do you want to play?\"\n" * 8


def run(program, *arguments):
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def clients(base):
    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["conv", "builtin"]
    ask = dict(model="builtin", prompt="Once upon a time", max_tokens=40, seed=7, logprobs=3, n=2)
    whole = client.completions.create(**ask)
    texts = ["", ""]
    for chunk in client.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert whole.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in whole.choices)
    ask = dict(model="builtin", messages=[{"role": "user", "content": "Once"}], max_tokens=20, seed=7, logprobs=True, top_logprobs=2)
    whole = client.chat.completions.create(**ask)
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert (text, usage) == (whole.choices[0].message.content, whole.usage)
    for change, error in [
        (dict(model="other"), openai.NotFoundError),
        (dict(temperature=-1), openai.BadRequestError),
        (dict(suffix="x"), openai.BadRequestError),
        (dict(n=1000), openai.BadRequestError),
    ]:
        try:
            client.completions.create(**{**dict(model="builtin", prompt="a"), **change})
            raise SystemExit(f"{change} was not refused")
        except error as refused:
            assert refused.body["message"], refused
    print("openai: models, completions, chat, streams, errors")


def scores(program, base):
    lm = LocalCompletionsAPI(
        base_url=f"{base}/v1/completions", model="builtin", tokenizer_backend="remote", max_length=1_000_000, batch_size=1
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.txt")
        file.write_text(TEXT)
        own = json.loads(run(program, "eval", "builtin", "--data", str(file), "--json"))
    rolling = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXT.rstrip("\n"),), 0)])[0]
    import math
    bpb = -rolling / math.log(2) / len(TEXT.rstrip("\n").encode())
    print(f"lm-eval: {bpb:.12f} bits per byte, flashlm eval {own['bpb']:.12f}")
    choices = [" there was", " banana"]
    asked = [Instance("loglikelihood", {}, ("Once upon a time", choice), i) for i, choice in enumerate(choices)]
    told = [score for score, _ in lm.loglikelihood(asked)]
    flags = [flag for choice in choices for flag in ("-c", choice)]
    wanted = [json.loads(line)["logprob"] for line in run(program, "score", "builtin", "-p", "Once upon a time", *flags, "--json").splitlines()]
    assert all(abs(a - b) < 1e-9 for a, b in zip(told, wanted, strict=True)), (told, wanted)
    assert abs(bpb - own["bpb"]) < 1e-9, "the figures differ"
    gguf = GGUFLM(base_url=base)
    found = [score for score, _ in gguf.loglikelihood(asked)]
    # It adds up from the token in which the choice begins.
    assert all(abs(a - b) < 1e-9 for a, b in zip(found, wanted, strict=True)), (found, wanted)
    print("lm-eval: multiple choice as `flashlm score`, by local-completions and by gguf")
    until = ["\n", "."]
    for prompt in ["Once upon a time", "The big dog", "\"Hello,\" said"]:
        stop = [flag for text in until for flag in ("--stop", text)]
        own = run(program, "generate", "builtin", "-p", prompt, "-t", "0", "-n", "16", *stop).removesuffix("\n")[len(prompt):]
        instance = Instance("generate_until", {}, (prompt, {"until": until, "max_gen_toks": 16, "temperature": 0}), 0)
        assert lm.generate_until([instance]) == [own], prompt
        assert gguf.generate_until([instance]) == [own.strip()], prompt
    print("lm-eval: generate_until as `flashlm generate`, by local-completions and by gguf")


def main():
    program = sys.argv[1]
    # The first has another vocabulary: whoever asks it for the other's tokens gets wrong ones.
    models = [str(Path(__file__).parents[1] / "golden/conv.safetensors"), "builtin"]
    server = subprocess.Popen([program, "serve", *models, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        base = "http://" + server.stdout.readline().strip().rsplit("http://")[-1]
        clients(base)
        # lm-eval does not name the model to the tokenizer's paths.
        scores(program, f"{base}/models/builtin")
        if shutil.which("node"):
            subprocess.run(["node", str(Path(__file__).with_name("check.mjs")), base], check=True)
        else:
            print("skipped: no node here")
    finally:
        server.terminate()
    assert server.wait() == 0
    print("all passed")


if __name__ == "__main__":
    main()
