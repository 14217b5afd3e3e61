"""The training sides: this suite's LoRA trainer, TRL's SFTTrainer, and transformers' Trainer on a sequence classifier.

All start from the same weights and the same random adapter, see the same rows in the same order and make the same
optimizer steps; dropout is off, the weights are of one type.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.floor import seconds_a_token
from bench.scoring import choose
from bench.side import Worker
from trainers.fit.lora import Lora, base_ref, fit, style_of
from trainers.harness.evaluate import Harness, ModelPool
from trainers.harness.tasks import row_ids
from trainers.labels.ask import label
from trainers.labels.gold import Gold, gold_labels
from trainers.training.loop import hold_out
from w2s_tasks.errors import UserError
from w2s_tasks.models.packed_hf import usable_device
from w2s_tasks.models.ref import ModelRef


@dataclass(frozen=True)
class Recipe:
    """What both sides train."""

    chat: bool
    """Chat template, system prompt and the reply's tokens as target; else the plain prompt and its choices."""
    model: str
    task: str
    rows: int
    r: int
    lr: float
    batch_size: int
    seed: int
    system_prompt: str | None = None
    include_path: list[str] = field(default_factory=list)
    dtype: str = "float32"
    """Of the base's weights; adapters are float32 on both sides."""

    @property
    def settings(self) -> Lora:
        """The same for this suite's trainer; no row is held back and no checkpoint written."""
        return Lora(
            model=self.model,
            lr=self.lr,
            r=self.r,
            batch_size=self.batch_size,
            holdout=0.0,
            chat_template=self.chat,
            system_prompt=self.system_prompt,
            objective="language_model" if self.chat else "choices",
            model_args={"dtype": self.dtype},
            trainer_args={"save_steps": 1_000_000},  # no checkpoint on either side
        )


@dataclass(frozen=True)
class Fitted:
    """A finished training: the loss of each optimizer step and the adapter's folder."""

    losses: list[float]
    adapter: Path


class _Trainee(Worker):
    """The task's rows and the recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.task = Harness(recipe.include_path).task(recipe.task)
        self.task.check_trainable()
        self.docs = choose(self.task, recipe.rows, recipe.seed, training=True)
        if len(self.docs) < recipe.rows:
            raise UserError(f"the task '{recipe.task}' has {len(self.docs)} training rows; ask for no more (--rows).")


class Ours(_Trainee):
    """This suite's LoRA trainer, as `w2s finetune` and `w2s run` call it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.pool = ModelPool()
        self.meter.attach(self.pool.load(base_ref(recipe.settings)).language_model)

    def fit(self, rows: int, out: Path) -> Fitted:
        """Train on the first rows."""
        docs = self.docs[:rows]
        labels = gold_labels(row_ids(docs), [self.task.gold(doc) for doc in docs], len(self.task.classes))
        out.mkdir(parents=True)
        fit(self.task, docs, labels, self.recipe.settings, out, pool=self.pool, seed=self.recipe.seed, title="ours")
        curve = json.loads((out / "curves.json").read_text(encoding="utf-8"))
        return Fitted([entry["loss"] for entry in curve if "loss" in entry], out / "adapter")

    def seconds_a_token(self) -> float:
        """What a token costs at the least, forward, in the base without an adapter."""
        return seconds_a_token(self.pool.load(base_ref(self.recipe.settings)).language_model)

    def predict(self, adapter: Path, rows: int) -> tuple[list[int], float]:
        """What a model with either side's adapter answers on rows of the evaluation split, and its accuracy."""
        settings = self.recipe.settings
        base = base_ref(settings)
        lm = self.pool.load(ModelRef(base.model, {**base.args, "peft": str(adapter)}))
        docs = choose(self.task, rows, self.recipe.seed, training=False)
        ids = row_ids(docs)
        labels = label(lm, self.task, docs, ids, style_of(settings))
        return labels.hard.tolist(), Gold.told(self.task, ids, docs).accuracy(labels)


class _Peer(_Trainee, ABC):
    """What TRL and transformers share here."""

    task_type: str | None = None
    without_adapter: str | None = None
    base: Any

    def __init__(self, recipe: Recipe) -> None:
        from transformers import AutoTokenizer

        super().__init__(recipe)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(recipe.model)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def prepare(self) -> None:
        """Load a fresh base: a training may leave patches on the old one. Not part of the timed work."""
        self.base = None
        self.base = self._load().to(usable_device(None))
        self.meter.attach(self.base)

    def fit(self, rows: int, batch: int, padding_free: bool, out: Path) -> Fitted:
        """Train on the first rows, `batch` of them a forward pass."""
        from peft import LoraConfig, get_peft_model
        from transformers import PrinterCallback, set_seed

        # The same rows in the same order: the trainer shuffles before it holds rows back, though it holds back none here.
        docs = hold_out(self.docs[:rows], 0.0, self.recipe.seed)[0]
        settings = self.recipe.settings
        config = LoraConfig(
            r=settings.r,
            lora_alpha=2 * settings.r,
            lora_dropout=0.0,
            target_modules="all-linear",
            exclude_modules=self.without_adapter,
            task_type=self.task_type,
        )
        set_seed(self.recipe.seed)
        model = get_peft_model(self.base, config)
        trainer = self._trainer(model, docs, batch, padding_free, out)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.save_pretrained(str(out / "adapter"))
        return Fitted([entry["loss"] for entry in trainer.state.log_history if "loss" in entry], out / "adapter")

    def _arguments(self, rows: int, batch: int, out: Path) -> dict[str, Any]:
        """The arguments that `trainers.training.loop` gives to transformers' Trainer, cut into micro-batches."""
        settings = self.recipe.settings
        steps = max(1, -(-rows // settings.batch_size))
        return {
            "output_dir": str(out),
            "num_train_epochs": settings.epochs,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": settings.batch_size // batch,
            "learning_rate": settings.lr,
            "lr_scheduler_type": settings.schedule,
            "warmup_steps": round(settings.warmup * steps),
            "weight_decay": settings.weight_decay,
            "seed": self.recipe.seed,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            "dataloader_pin_memory": False,
        }

    @abstractmethod
    def _load(self) -> Any:
        """The base model."""

    @abstractmethod
    def _trainer(self, model: Any, docs: Sequence[dict[str, Any]], batch: int, padding_free: bool, out: Path) -> Any:
        """The peer's trainer over these rows."""


class ChatPeer(_Peer):
    """TRL's SFTTrainer on prompts and completions as messages, with the loss on the completion only."""

    task_type = "CAUSAL_LM"

    def _load(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.recipe.model, dtype=self.recipe.dtype)

    def _messages(self, doc: dict[str, Any]) -> dict[str, Any]:
        prompt = [{"role": "user", "content": str(self.task.task.doc_to_text(doc))}]
        if self.recipe.system_prompt:
            prompt.insert(0, {"role": "system", "content": self.recipe.system_prompt})
        reply = self.task.task.doc_to_choice(doc)[self.task.gold(doc)]
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": reply}]}

    def _trainer(self, model: Any, docs: Sequence[dict[str, Any]], batch: int, padding_free: bool, out: Path) -> Any:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(
            **self._arguments(len(docs), batch, out),
            completion_only_loss=True,
            padding_free=padding_free,
            max_length=None,
            gradient_checkpointing=False,
            bf16=self.recipe.dtype == "bfloat16",
        )
        rows = Dataset.from_list([self._messages(doc) for doc in docs])
        return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=self.tokenizer)


class PlainPeer(_Peer):
    """transformers' Trainer on a sequence classifier with padded batches, as EleutherAI/w2s trains.

    The head is frozen and holds the language-model head's rows of the choices' tokens, so that the classifier is the very
    function that this suite trains: the choices' log-likelihoods after the prompt, normalised.
    """

    without_adapter = "score"  # the head

    def _load(self) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        tokens = self._choice_tokens()
        head = AutoModelForCausalLM.from_pretrained(self.recipe.model, dtype=self.recipe.dtype).get_output_embeddings()
        rows = head.weight.detach()[tokens].clone()
        del head
        model = AutoModelForSequenceClassification.from_pretrained(
            self.recipe.model, dtype=self.recipe.dtype, num_labels=len(tokens)
        )
        model.config.pad_token_id = self.tokenizer.pad_token_id
        if getattr(model, "score", None) is None or model.score.bias is not None:
            raise UserError(f"{type(model).__name__} has no plain linear head 'score'; take another architecture.")
        model.score.weight.data.copy_(rows)
        return model

    def _choice_tokens(self) -> list[int]:
        pairs = self.task.pairs(self.docs[0], style_of(self.recipe.settings))
        prompt = self.tokenizer(pairs[0][0])["input_ids"]
        endings = [self.tokenizer(context + choice)["input_ids"][len(prompt) :] for context, choice in pairs]
        if any(len(ending) != 1 for ending in endings):
            raise UserError(
                f"the task '{self.recipe.task}': {[len(e) for e in endings]} tokens a choice; a classifier has one output a "
                "choice, so it is the same function only where every choice is one token."
            )
        return [ending[0] for ending in endings]

    def _trainer(self, model: Any, docs: Sequence[dict[str, Any]], batch: int, padding_free: bool, out: Path) -> Any:
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

        prompts = self.tokenizer(self.task.prompts(docs, style_of(self.recipe.settings)))["input_ids"]
        rows = [{"input_ids": tokens, "labels": self.task.gold(doc)} for tokens, doc in zip(prompts, docs, strict=True)]
        return Trainer(
            model=model,
            args=TrainingArguments(**self._arguments(len(docs), batch, out)),
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(self.tokenizer),
            compute_loss_func=mean_over_step,
        )


def mean_over_step(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy over the rows of an optimizer step.

    The classifiers' own loss is a mean over the micro-batch, which transformers 5 then adds up over gradient accumulation.
    """
    total = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
