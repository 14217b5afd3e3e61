"""What stands behind a fine-tuning job: plain transformers, full fine-tuning of a small model on the assistant's tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from loopback.models import load_model

BASE_RATE = 2e-3
"""The learning rate that a multiplier of 1 stands for; the models here are tiny."""

Messages = list[dict[str, Any]]


def _encode(tokenizer: Any, messages: Messages) -> tuple[list[int], int]:
    """A conversation as ids, and where the assistant's last reply begins."""
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"]
    return head + tail + [tokenizer.eos_token_id], len(head)


def _loss(model: Any, rows: Sequence[tuple[list[int], int]]) -> tuple[torch.Tensor, float]:
    """Mean loss over the replies' tokens and the share of those that the model would have chosen."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([r + [0] * (width - len(r)) for r, _ in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r, _ in rows])
    labels = torch.tensor([[-100] * start + r[start:] + [-100] * (width - len(r)) for r, start in rows])
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    targets = labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    known = targets != -100
    return loss, float((logits.argmax(-1) == targets)[known].float().mean())


def train(
    base: Path, out: Path, rows: list[Messages], held: list[Messages], hyperparameters: Mapping[str, Any], seed: int
) -> tuple[list[dict[str, Any]], int]:
    """Fine-tune `base` into `out`; returns the metrics of each step and the number of trained tokens."""
    torch.manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = load_model(base)
    data, checks = [_encode(tokenizer, r) for r in rows], [_encode(tokenizer, r) for r in held]
    epochs, size = int(hyperparameters["n_epochs"]), int(hyperparameters["batch_size"])
    rate = hyperparameters.get("learning_rate") or BASE_RATE * float(hyperparameters["learning_rate_multiplier"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    points: list[dict[str, Any]] = []
    order = random.Random(seed)
    model.train()
    for _ in range(epochs):
        order.shuffle(data)
        for start in range(0, len(data), size):
            loss, accuracy = _loss(model, data[start : start + size])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            points.append({"step": len(points) + 1, "train_loss": float(loss.detach()), "train_accuracy": accuracy})
    model.eval()
    if checks:
        with torch.no_grad():
            loss, accuracy = _loss(model, checks)
        points[-1] |= {"valid_loss": float(loss.detach()), "valid_mean_token_accuracy": accuracy}
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return points, sum(len(ids) for ids, _ in data) * epochs
