"""Speed of writing in PyTorch, as the original script writes: for every new token the whole window goes through the model again.

    python generate.py --preset v4-small --tokens 200 --prompt 8 --threads 1 --frozen

float32, no gradients, one stream, greedy; the window is the prompt and what was written, cropped to the last T = 256 tokens.
The model is ternarised on every pass, and gives logits at every position, of which the last are used. `--frozen` is the same
text sooner: weights made ternary once, logits of the last position alone. Start and warm-up come before the clock.
"""

import argparse
import json
import resource
import time

import torch
import torch.nn.functional as F

import gdn
from v4 import PRESETS, BitLinear, Model, quantise

CONTEXT = 256


def freeze(model):
    def fixed(layer):
        weight = quantise(layer.weight, layer.cfg)
        layer.forward = lambda x: F.linear(layer.norm(x), weight)

    for layer in model.modules():
        if isinstance(layer, BitLinear):
            fixed(layer)
    model.final_norm.register_forward_pre_hook(lambda _, inputs: inputs[0][:, -1:])


def generate(model, tokens, count):
    for _ in range(count):
        logits = model(tokens[:, -CONTEXT:])[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    return tokens


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", choices=PRESETS | gdn.PRESETS, default="v4-small")
    p.add_argument("--tokens", type=int, default=200, help="that are written; default: %(default)s")
    p.add_argument("--prompt", type=int, default=8, help="tokens of the prompt; default: %(default)s")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--frozen", action="store_true", help="weights made ternary once, logits of the last position alone")
    args = p.parse_args()
    if args.tokens < 1 or args.prompt < 1:
        p.error("--tokens and --prompt are at least 1")

    torch.set_num_threads(args.threads)
    torch.manual_seed(42)
    model = gdn.gdn_model(gdn.PRESETS[args.preset]) if args.preset in gdn.PRESETS else Model(PRESETS[args.preset])
    model.eval()
    if args.frozen:
        freeze(model)
    prompt = torch.randint(0, model.cfg.vocab, (1, args.prompt))
    generate(model, torch.randint(0, model.cfg.vocab, (1, CONTEXT)), 5)

    start = time.perf_counter()
    generate(model, prompt, args.tokens)
    seconds = time.perf_counter() - start
    result = {
        "tokens_per_second": args.tokens / seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "preset": args.preset,
        "frozen": args.frozen,
        "tokens": args.tokens,
        "prompt": args.prompt,
        "threads": args.threads,
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
