"""What a vLLM server adds to the service, as 0.32 does it: prompts and names of tokens, adapters that are loaded, a cache.

    with VLLM(models={"base": folder}) as server: ...

Fields and answers are those that vLLM 0.32.0 was seen to take and to give; `tests/test_vllm.py` runs the same tests on both.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .app import Answer, ApiError, Request, ServedModel, Service
from .chat import Brain, brain, chat_completion

FIELDS = frozenset(
    "model prompt max_tokens temperature stop logprobs logprob_token_ids return_tokens_as_token_ids repetition_penalty "
    "prompt_logprobs cache_salt seed top_p".split()
)
CHAT_FIELDS = frozenset("model messages max_tokens temperature logprobs top_logprobs logprob_token_ids".split())
BLOCK = 16
LEAST = -9999.0


@functools.cache
def adapted(base: Path, adapter: Path) -> Brain:
    """A base with an adapter on it, by PEFT's own code."""
    from peft import PeftModel

    found = Brain(base)
    found.model = PeftModel.from_pretrained(found.model, str(adapter)).eval()
    return found


class VLLM(Service):
    """A vLLM server with one base model; its first model."""

    def __init__(self, models: Mapping[str, Path], *, max_length: int = 200, runtime_lora: bool = True, **more: Any) -> None:
        super().__init__(models=models, **more)
        self.max_length, self.runtime_lora = max_length, runtime_lora
        self.base = next(iter(models))
        self.adapters: dict[str, Path] = {}
        self.asked: list[dict[str, Any]] = []
        """The bodies of all completions."""
        self.computed = 0
        """Tokens of prompts that the cache did not hold."""
        self._blocks: set[tuple[Any, ...]] = set()
        self.stale = self.raw_logits = self.old = False
        """Faults: wrong values out of the cache; --logprobs-mode raw_logits; a version that knows no `logprob_token_ids`."""

    def handle(self, request: Request) -> Answer:
        """What vLLM answers otherwise than OpenAI."""
        handlers = {
            ("GET", "/version"): lambda body: {"version": "0.32.0"},
            ("GET", "/v1/models"): self._models,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/completions"): self._completion,
            ("POST", "/v1/chat/completions"): self._chat,
        }
        if self.runtime_lora:
            handlers["POST", "/v1/load_lora_adapter"] = self._load
        handler = handlers.get((request.method, request.path))
        if handler is None or request.headers.get("authorization") != f"Bearer {self.key}":
            return super().handle(request)
        try:
            found = handler(json.loads(request.body or b"null"))
        except ApiError as error:
            return Answer(json.dumps(error.body).encode(), error.status)
        return Answer(found.encode() if isinstance(found, str) else json.dumps(found).encode())

    def _models(self, body: None) -> dict[str, Any]:
        def card(name: str, root: Path | None, parent: str | None, length: int | None) -> dict[str, Any]:
            known = ServedModel(name).to_dict()
            return {**known, "root": str(root), "parent": parent, "max_model_len": length}

        bases = [card(m.id, m.folder, None, self.max_length) for m in self.models.values()]
        return {"object": "list", "data": bases + [card(n, p, self.base, None) for n, p in self.adapters.items()]}

    def _brain(self, name: str) -> Brain:
        base = self.models[self.base].folder
        if name in self.adapters and base:
            return adapted(base, self.adapters[name])
        if name not in self.models:
            raise ApiError(404, f"The model `{name}` does not exist. Valid aliases: {self.base}.", param="model")
        return brain(self.models[name].folder or Path())

    def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self._brain(body["model"]).tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
        return {"count": len(ids), "max_model_len": self.max_length, "tokens": ids, "token_strs": None}

    def _load(self, body: dict[str, Any]) -> str:
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            raise ApiError(400, f"The lora adapter '{name}' has already been loaded. If you want to load ...")
        if not (path / "adapter_config.json").is_file():
            raise ApiError(404, f"Loading lora {name} failed: No adapter found for {path}")
        self.adapters[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def _cached(self, body: Mapping[str, Any], ids: list[int]) -> int:
        """How many tokens of a prompt the cache holds; whole blocks, the last token never. Prompts in parts read none."""
        with self.lock:
            keys = [(body["model"], body.get("cache_salt"), *ids[:end]) for end in range(BLOCK, len(ids), BLOCK)]
            hit = 0 if body.get("prompt_logprobs") is not None else BLOCK * sum(key in self._blocks for key in keys)
            self._blocks.update(keys)
            self.computed += len(ids) - hit
            self.asked.append(dict(body))
        return hit

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        unknown = body.keys() - FIELDS
        if unknown:
            raise ApiError(400, f"Unknown parameter: {min(unknown)}", param=min(unknown))
        model = self._brain(body["model"])
        ids = body["prompt"] if isinstance(body["prompt"], list) else model.tokenizer.encode(body["prompt"])
        if len(ids) + body["max_tokens"] > self.max_length:
            raise ApiError(400, f"This model's maximum context length is {self.max_length} tokens.", param="input_tokens")
        named = None if self.old else body.get("logprob_token_ids")
        if named and body.get("logprobs") is None:
            raise ApiError(400, "when using `logprob_token_ids`, `logprobs` must be set.", param="logprob_token_ids")
        if max(named or [0]) >= model.model.config.vocab_size:
            raise ApiError(400, f"token_id(s) {named} contain out-of-vocab token ids.", param="logprob_token_ids")
        cached = self._cached(body, ids)
        told, scores = self._scores(model, ids)
        if self.stale and cached:
            scores = (scores + 3 * scores.sin()).log_softmax(-1)
        best = int(scores.argmax())
        shown = [best, *(named or scores.topk(body.get("logprobs") or 1).indices.tolist())]
        numbered = body.get("return_tokens_as_token_ids")
        names = {t: f"token_id:{t}" if numbered else model.tokenizer.decode([t]) for t in shown}
        values = {t: max(LEAST, float(scores[t])) for t in shown}
        logprobs = {
            "text_offset": [0],
            "tokens": [names[best]],
            "token_logprobs": [values[best]],
            "top_logprobs": [{names[t]: values[t] for t in shown}],
        }
        generated = model.write(
            model.tokenizer.decode(ids), body["max_tokens"], body["temperature"], body.get("stop") or [], 0, "0"
        )
        prompt = [None, *({str(t): {"logprob": x, "rank": 1}} for t, x in zip(ids[1:], told, strict=True))]
        choice = {
            "index": 0,
            "text": generated.text,
            "logprobs": logprobs if body.get("logprobs") is not None else None,
            "finish_reason": generated.finish,
            "prompt_logprobs": prompt if body.get("prompt_logprobs") is not None else None,
        }
        n = len(generated.tokens)
        usage = {"prompt_tokens": len(ids), "completion_tokens": n, "total_tokens": len(ids) + n}
        usage["prompt_tokens_details"] = {"cached_tokens": cached}  # type: ignore[assignment]
        kind = {"id": self.new_id("cmpl"), "object": "text_completion", "created": int(time.time())}
        return {**kind, "model": body["model"], "choices": [choice], "usage": usage}

    def _scores(self, model: Brain, ids: list[int]) -> tuple[list[float], Any]:
        """Log-probabilities of a prompt's own tokens after the first, and of all tokens after it."""
        torch = model.torch
        with model.lock, torch.inference_mode():
            logits = model.model(torch.tensor([ids])).logits[0].float()
        scores = logits.log_softmax(-1)
        told = [float(scores[i, t]) for i, t in enumerate(ids[1:])]
        return told, logits[-1] if self.raw_logits else scores[-1]

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        unknown = body.keys() - CHAT_FIELDS
        if unknown:
            raise ApiError(400, f"Unknown parameter: {min(unknown)}", param=min(unknown))
        named = None if self.old else body.pop("logprob_token_ids", None)
        answer = chat_completion(self, body)
        self.asked.append({**body, **({"logprob_token_ids": named} if named else {})})
        if not named:
            return answer
        model = self._brain(body["model"])
        ids = model.tokenizer(model.chat_prompt(body["messages"])).input_ids
        for position in answer["choices"][0]["logprobs"]["content"]:
            scores = self._scores(model, ids)[1]
            listed = [(model.tokenizer.decode([t]), float(scores[t])) for t in named]
            position["top_logprobs"] = [{"token": t, "logprob": x, "bytes": list(t.encode())} for t, x in listed]
            ids = [*ids, int(scores.argmax())]
        return answer
