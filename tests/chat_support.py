"""A small model that has learnt `own_reviews`, behind the stand-in service, for the tests of w2s-chat."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from conftest import rows
from openai_service import Service

NAMES = ("negative", "positive")
# Ends in a line break: then the words after it are tokenized alike by the service and by lm_eval.
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def question(text: object) -> str:
    """As `own_reviews` asks."""
    return f"Review: {text}\nSentiment:"


def teach(base: Path, out: Path, quote: str = "", steps: int = 60) -> Path:
    """Fine-tune a tiny model on the task, as plain text and as a chat, so that its first token tells the answer.

    With `quote` it puts its answers in those.
    """
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
            answer = f"{quote}{NAMES[int(row['label'])]}{quote}"
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
    from w2s_tasks.plugin.manager import W2STaskManager

    register()
    manager = W2STaskManager(include_path=str(own_task) if own_task else None)
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=args,
        tasks=tasks,
        task_manager=manager,
        bootstrap_iters=0,
        **{"num_fewshot": 0, "apply_chat_template": True, **more},
    )
    assert results is not None
    return dict(results)


def arguments(service: Service, folder: Path, **more: Any) -> dict[str, Any]:
    """Model arguments for the stand-in, with answers kept below `folder`."""
    return {"model": "tiny", "base_url": service.base_url, "store": str(folder / "store"), "backoff": 0.01, **more}


def stored(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of the answer stores below a folder."""
    lines = [
        line for path in folder.rglob("*.jsonl") if ".batches" not in path.name for line in path.read_bytes().splitlines()
    ]
    found = []
    for line in lines:
        try:
            data = json.loads(line)
        except ValueError:
            continue
        found += [data] if "key" in data else []
    return found


def command(own_task: Path, args: dict[str, Any], *more: str) -> list[str]:
    """`w2s eval` as a process of its own."""
    base = [sys.executable, "-m", "trainers.cli", "eval", "--model", "w2s-chat", "--model_args", json.dumps(args)]
    return [*base, "--include_path", str(own_task), "--tasks", "own_reviews", "--apply_chat_template", *more]


def chosen(results: dict[str, Any], task: str) -> list[int]:
    """The index of the best choice for each document."""
    import numpy as np

    samples = sorted(results["samples"][task], key=lambda s: s["doc_id"])
    return [int(np.argmax([float(r[0]) for r in s["filtered_resps"]])) for s in samples]
