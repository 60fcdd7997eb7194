"""FlashLM as a model of lm-evaluation-harness: pip install lm-eval; python lm_eval_model.py MODEL TASK"""

from __future__ import annotations

import sys
from typing import Any

from lm_eval.api.model import LM

import flashlm


class FlashLM(LM):  # type: ignore[misc]
    def __init__(self, model: str = "builtin") -> None:
        super().__init__()
        self.model = flashlm.load(model)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        scored = [self.model.score(request.args[1], prompt=request.args[0], top=1) for request in requests]
        return [(sum(t.logprob for t in tokens), all(t.id == t.top[0][0] for t in tokens)) for tokens in scored]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [sum(token.logprob for token in self.model.score(request.args[0])) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        def text(prompt: str, asked: dict[str, Any]) -> str:
            limit, stop = asked.get("max_gen_toks", 200), asked.get("until", [])
            return self.model.complete(prompt, tokens=limit, stop=stop, temperature=asked.get("temperature", 0.0))

        return [text(*request.args) for request in requests]


if __name__ == "__main__":
    from lm_eval import simple_evaluate

    print(simple_evaluate(FlashLM(sys.argv[1]), tasks=[sys.argv[2]])["results"])
