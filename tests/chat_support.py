"""A small model that has learnt `own_reviews`, behind the stand-in service, for the tests of w2s-chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import rows

NAMES = ("negative", "positive")
# Ends in a line break: then the words after it are tokenized alike by the service and by lm_eval.
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def question(text: object) -> str:
    """As `own_reviews` asks."""
    return f"Review: {text}\nSentiment:"


def teach(base: Path, out: Path, steps: int = 60) -> Path:
    """Fine-tune a tiny model on the task, as plain text and as a chat, so that its first token tells the answer."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    tokenizer = tf.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    model = tf.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for p in model.parameters():
            p.div_(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data = rows(480, 11)
    for step in range(steps):
        loss = torch.zeros(())
        for row in data[step * 8 % len(data) :][:8]:
            messages = [{"role": "user", "content": question(row["text"])}]
            chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            answer = NAMES[int(row["label"])]
            for prompt, target in ((question(row["text"]), f" {answer}"), (chat, answer)):
                head = tokenizer(prompt, add_special_tokens=False).input_ids
                tail = [*tokenizer(target, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
                loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(tail))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def evaluate(model: str, args: dict[str, Any], tasks: list[str], own_task: Path | None, **more: Any) -> dict[str, Any]:
    """lm_eval itself on tasks."""
    import lm_eval

    from w2s_tasks import register
    from w2s_tasks.manager import W2STaskManager

    register()
    manager = W2STaskManager(include_path=str(own_task) if own_task else None)
    return lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=tasks, task_manager=manager, bootstrap_iters=0, num_fewshot=0, **more
    )


def chosen(results: dict[str, Any], task: str) -> list[int]:
    """The index of the best choice for each document."""
    import numpy as np

    samples = sorted(results["samples"][task], key=lambda s: s["doc_id"])
    return [int(np.argmax([float(r[0]) for r in s["filtered_resps"]])) for s in samples]


@pytest.fixture(scope="session")
def reviewer(causal_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that answers `own_reviews` well."""
    return teach(causal_model("llama"), tmp_path_factory.mktemp("reviewer"))
