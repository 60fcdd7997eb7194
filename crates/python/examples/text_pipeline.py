"""The interface of transformers.pipeline("text-generation"), for programs that were written for it."""

from __future__ import annotations

import flashlm


class TextGeneration:
    """`pipe = TextGeneration("builtin"); pipe("Once upon a time", max_new_tokens=50)[0]["generated_text"]`"""

    def __init__(self, model: str = "builtin") -> None:
        self.model = flashlm.load(model)

    def __call__(
        self, prompt: str, *, max_new_tokens: int = 200, num_return_sequences: int = 1, do_sample: bool = True,
        temperature: float = 0.8, top_k: int = 0, top_p: float = 0.95, return_full_text: bool = True, seed: int = 42,
    ) -> list[dict[str, str]]:
        def text(seed: int) -> str:
            heat = temperature if do_sample else 0.0
            return self.model.complete(prompt, tokens=max_new_tokens, temperature=heat, top_k=top_k, top_p=top_p, seed=seed)

        before = prompt if return_full_text else ""
        return [{"generated_text": before + text(seed + i)} for i in range(num_return_sequences)]


if __name__ == "__main__":
    print(TextGeneration()("Once upon a time", max_new_tokens=50)[0]["generated_text"])
