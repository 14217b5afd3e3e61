"""``--model w2s-vllm``: log-likelihoods of a causal model and its adapters on a running vLLM server.

    w2s eval --model w2s-vllm --model_args pretrained=FOLDER,peft=ADAPTER,base_url=http://localhost:8000/v1 --tasks w2s_sst2

`model` is lm_eval's interface; `server` asks the server what it has, loads adapters and tries whether its values are right.
Requests, retries and stored answers are those of `w2s_tasks.models.chat`.
"""

from __future__ import annotations

from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import VLLM_MODEL, ModelRef

SHARED = frozenset(
    {"pretrained", "peft", "revision", "add_bos_token", "prefix_token_id", "max_length", "max_gen_toks"}
    | {"enable_thinking", "chat_template_args"}
)
"""Arguments that mean the same to `w2s-hf` and to `w2s-vllm`."""
OF_PROCESS = frozenset(["device", "dtype", "batch_size", "max_batch_size", "token_budget", "parallelize"])
"""Arguments of `w2s-hf` that a server was started with in words of its own."""


def on_server(ref: ModelRef, base_url: str | None) -> ModelRef:
    """A local language model as a server at `base_url` has it; without an address the one that the environment names.

    Raises:
        UserError: an argument that decides what the model answers, and that a server would not get.
    """
    other = sorted(ref.args.keys() - SHARED - OF_PROCESS)
    if ref.model != "w2s-hf" or other:
        raise UserError(
            f"evaluate.engine: vllm can't take {f'model_args.{other[0]}' if other else ref.model} along; leave it out, or "
            "use engine: hf."
        )
    args = {name: value for name, value in ref.args.items() if name in SHARED}
    return ModelRef(VLLM_MODEL, args | ({"base_url": base_url} if base_url else {}))
