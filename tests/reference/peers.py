"""Small models of other programs with drawn weights, as transformers saves them, and what transformers computes with them.

    python peers.py [name ...]        # needs torch, transformers and safetensors

Each folder of `peers/` has `config.json`, weights, and `expected.safetensors`: `ids` `[2, T]`, `logits` `[2, T, V]` and `nll` `[2, T-1]`, the
nats of each token after the first. They differ in heads, windows, tied or not, rotary base, biases and file.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent / "peers"
NEO = {"vocab_size": 37, "hidden_size": 24, "max_position_embeddings": 32, "attention_dropout": 0.0, "resid_dropout": 0.0, "embed_dropout": 0.0}
LLAMA = {"vocab_size": 41, "max_position_embeddings": 64}
MODELS = {
    "gpt_neo_window": GPTNeoConfig(**NEO, num_layers=3, num_heads=3, window_size=5, attention_types=[[["global", "local", "local"], 1]]),
    "gpt_neo_untied": GPTNeoConfig(**NEO, num_layers=2, num_heads=6, window_size=9, intermediate_size=40, tie_word_embeddings=False, attention_types=[[["local", "global"], 1]]),
    "llama_one_key": LlamaConfig(**LLAMA, hidden_size=24, intermediate_size=34, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True, rope_theta=500_000.0),
    "llama_biases": LlamaConfig(**LLAMA, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=6, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, rope_theta=100.0, rms_norm_eps=1e-6),
}  # fmt: skip
IN_TORCH = {"gpt_neo_untied", "llama_one_key"}  # as pytorch_model.bin


def make(name: str):
    torch.manual_seed(sorted(MODELS).index(name))
    config = MODELS[name]
    model = (GPTNeoForCausalLM if config.model_type == "gpt_neo" else LlamaForCausalLM)(config).eval()
    for p in model.parameters():
        p.data.normal_(std=0.25) if p.dim() > 1 else p.data.add_(torch.randn_like(p) * 0.2)
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    ids = torch.randint(0, config.vocab_size, (2, 29))
    with torch.no_grad():
        logits = model(ids).logits
    nll = -torch.log_softmax(logits.double(), -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    if name in IN_TORCH:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
    save_file({"ids": ids, "logits": logits.contiguous(), "nll": nll.float().contiguous()}, folder / "expected.safetensors")
    config = json.loads((folder / "config.json").read_text())
    print(name, sum(p.numel() for p in model.parameters()), config["model_type"], f"nll {nll.mean():.3f}")


for name in sys.argv[1:] or MODELS:
    make(name)
