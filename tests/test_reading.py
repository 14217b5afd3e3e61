"""A classifier's row scores alike alone and beside others, on every architecture, up to the last position of its window."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from bad_input import one_clear_error
from conftest import rows
from lm_eval.api.instance import Instance
from tiny_models import sequence_classifiers, tiny_config, tiny_model

from trainers.fit import classifier as weak
from trainers.fit.classifier import Classifier
from trainers.harness import evaluate as hn
from trainers.labels.gold import gold_labels
from w2s_tasks.errors import UserError
from w2s_tasks.models.classifier import W2SClassifier

QUICK = [
    "bert", "roberta", "camembert", "xlm-roberta", "longformer", "mpnet", "data2vec-text", "esm", "distilbert", "deberta-v2",
    "albert", "electra", "modernbert", "xlnet", "fnet", "gpt2", "gpt_neo", "llama", "opt", "bloom", "qwen2", "gemma2",
]  # fmt: skip
BEHIND_THE_PADDING = {"roberta", "camembert", "xlm-roberta", "longformer", "mpnet", "data2vec-text", "esm"}
"""Their positions begin behind the padding token's id, which is 1 here: 256 places are 254 tokens."""
TEXTS = [row["text"] for row in rows(9, 5)] + ["warm", "", "the film and" + " the plot" * 140, "<eos>", "lovely<eos>"]


def classifier(kind: str, folder: Path, tokenizer_folder: Path, *, pad: int | None = 1, tokenizer_pad: bool = True) -> Path:
    """A random classifier; by default model and tokenizer agree on the padding token's id 1."""
    model = tiny_model(tf.AutoModelForSequenceClassification, tiny_config(kind, pad_token_id=pad, num_labels=2), scale=3)
    model.save_pretrained(folder)
    tokenizer = tf.AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.model_max_length = int(1e30)
    tokenizer.pad_token = "<bos>" if tokenizer_pad else None
    tokenizer.save_pretrained(folder)
    return folder


def answers(lm: W2SClassifier, texts: list[str]) -> torch.Tensor:
    requests = [
        Instance("loglikelihood", {"text": text}, ("", f" {choice}"), k, metadata=("t", i, 1))
        for i, text in enumerate(texts)
        for k, choice in enumerate(["no", "yes"])
    ]
    return torch.tensor([a for a, _ in lm.loglikelihood(requests, disable_tqdm=True)]).view(-1, 2)


def test_rounding_in_half_precision_is_not_taken_for_padding_that_changes_answers(tmp_path: Path, tokenizer_folder: Path):
    classifier("llama", tmp_path, tokenizer_folder)
    model = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model.score.weight.data.mul_(30)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    lm = W2SClassifier(str(tmp_path), device="cpu", text="text")
    assert lm.model.dtype == torch.bfloat16
    found = answers(lm, TEXTS)
    alone = torch.cat([answers(lm, [text]) for text in TEXTS])
    assert float((found - alone).abs().max()) > 0.1  # rounded by so much
    assert lm.reader.pads_exactly([])


@torch.no_grad()
def alone(folder: Path, lm: W2SClassifier, texts: list[str]) -> torch.Tensor:
    """What transformers answers to each text on its own, no batch and no padding."""
    model = tf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.get_text_config().pad_token_id = lm.reader.pad  # which of a text's tokens is its last
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=lm.reader.max_length)["input_ids"] or [lm.reader.pad]
        found.append(model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0].log_softmax(-1))
    return torch.stack(found)


def check(kind: str, folder: Path) -> W2SClassifier:
    lm = W2SClassifier(str(folder), text="text", device="cpu", token_budget=2048)
    found = answers(lm, TEXTS)
    expected = alone(folder, lm, TEXTS)
    assert found == pytest.approx(expected, abs=1e-4)
    assert answers(lm, TEXTS[::-1]).flip(0) == pytest.approx(expected, abs=1e-4)
    assert answers(lm, TEXTS[3:4]) == pytest.approx(expected[3:4], abs=1e-4)
    assert float((expected[0] - expected).abs().max()) > 1e-3
    return lm


@pytest.mark.parametrize("kind", QUICK)
def test_a_row_scores_alike_alone_and_beside_others(kind: str, tokenizer_folder: Path, tmp_path: Path):
    lm = check(kind, classifier(kind, tmp_path, tokenizer_folder))
    if kind in BEHIND_THE_PADDING:
        assert lm.reader.max_length == 254


@pytest.mark.slow
@pytest.mark.parametrize("kind", sequence_classifiers())
def test_every_architecture_reads_or_says_why_not(kind: str, tokenizer_folder: Path, tmp_path: Path):
    try:
        folder = classifier(kind, tmp_path, tokenizer_folder)
    except Exception as error:  # noqa: BLE001 - whatever keeps an architecture from being built small
        pytest.skip(f"can't be built small: {type(error).__name__}: {str(error)[:200]}")
    refused = ""
    try:
        check(kind, folder)
    except UserError as error:
        refused = str(error)
    assert re.search("^$|can't classify a text|could not load", refused)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize(
    ("pad", "tokenizer_pad", "agreed"), [(None, False, 2), (None, True, 1), (-1, True, 1), (3, True, 3)]
)
def test_model_and_tokenizer_agree_on_a_padding_token(
    kind: str, pad: int | None, tokenizer_pad: bool, agreed: int, tokenizer_folder: Path, tmp_path: Path
):
    """The model's own is taken, else the tokenizer's, else the end of a text; never one without an embedding."""
    folder = classifier(kind, tmp_path, tokenizer_folder, tokenizer_pad=tokenizer_pad)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    assert check(kind, folder).reader.pad == agreed


@pytest.mark.parametrize("kind", ["gpt2", "llama", "roberta", "xlnet", "fnet"])
def test_a_supervisor_on_any_base_is_trained_and_read_again(
    kind: str, own_task: Path, causal_model: Callable[[str], Path], tokenizer_folder: Path, tmp_path: Path
):
    """The base of GPT-2 and llama has no padding token."""
    base = tmp_path / "base"
    tiny_model(tf.AutoModel, tiny_config(kind, pad_token_id=1)).save_pretrained(base)
    tokenizer = tf.AutoTokenizer.from_pretrained(tokenizer_folder)
    if kind in ("gpt2", "llama"):
        tokenizer.pad_token = None
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    tokenizer.save_pretrained(base)
    task = hn.Harness([str(own_task)]).load(["own_reviews"])[0]
    docs = task.train_docs[:96]
    settings = Classifier(model=str(base), text="text", epochs=4, lr=3e-3, batch_size=16, max_length=20)
    labels = gold_labels([str(i) for i in range(96)], [doc["label"] for doc in docs], 2)
    ref = weak.fit(task, docs, labels, settings, tmp_path / "out", pool=hn.ModelPool())
    lm: Any = hn.ModelPool().load(ref)
    assert lm.reader.max_length == 20  # as in training
    texts = [doc["text"] for doc in docs]
    stock = tf.pipeline("text-classification", str(tmp_path / "out" / "model"), device="cpu", batch_size=1, top_k=None)
    by_stock = [
        {x["label"]: x["score"] for x in found}["positive"] for found in stock(texts, truncation=True, max_length=20)
    ]
    requests = [
        Instance("loglikelihood", doc, ("", f" {choice}"), k, metadata=("t", i, 1))
        for i, doc in enumerate(docs)
        for k, choice in enumerate(["negative", "positive"])
    ]
    found = torch.tensor([a for a, _ in lm.loglikelihood(requests, disable_tqdm=True)]).view(-1, 2)[:, 1].exp()
    assert found.tolist() == pytest.approx(by_stock, abs=1e-3)
    assert sum((p > 0.5) == (doc["label"] == 1) for p, doc in zip(by_stock, docs, strict=True)) > 60


def test_a_longer_text_than_there_are_positions_cannot_be_asked_for(tokenizer_folder: Path, tmp_path: Path):
    folder = classifier("roberta", tmp_path, tokenizer_folder)
    for most in (255, 10**6, 0, -3):
        one_clear_error(lambda: W2SClassifier(str(folder), device="cpu", max_length=most), "max_length.*1 to 254")  # noqa: B023
    assert W2SClassifier(str(folder), device="cpu", max_length=254).reader.max_length == 254


def test_a_checkpoint_of_another_head_is_no_sequence_classifier(tokenizer_folder: Path, tmp_path: Path):
    folder = classifier("bert", tmp_path, tokenizer_folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForTokenClassification"]}))
    one_clear_error(lambda: W2SClassifier(str(folder), device="cpu"), "no classification head")
