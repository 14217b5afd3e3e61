"""The optimizer steps of a training at a Tinker service: the rows, rates and losses of a local training, in its order.

Losses over choices run here, on log-probabilities that the service sends, and their gradient goes back
(``forward_backward_custom``: a pass without and one with gradients). Whole replies are learnt by the service's own
cross-entropy, in one pass. Each step is submitted while the one before it runs.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from trainers.fit.language_model import Learning, replies_run, reply_table
from trainers.services.tinker_run import Reached, TinkerRun
from trainers.store import stopping
from trainers.training.choice_trainer import held_back_metrics
from trainers.training.diverged import diverged
from trainers.training.loop import curve_every
from trainers.training.losses import LOSSES, State
from trainers.training.rows import Row, collated, normalised, weighted
from trainers.training.settings import Optimised
from w2s_tasks import notebook, packing
from w2s_tasks.errors import UserError
from w2s_tasks.models.tinker.service import LostError, known, sdk

AHEAD = 2
"""Steps that are at the service at once: one runs, one waits."""
Point = dict[str, float]


class AtService(Optimised):
    """The optimizer's settings of a training whose steps are at a service."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first decay."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's second decay; the SDK's own default is .95."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon; the SDK's own default is 1e-12."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """The gradient's norm is cut to this; 0 for no cut."""
    save_steps: int = Field(default=20, ge=1)
    """Optimizer steps between the checkpoints that a training goes on from; the service keeps one for seven days."""
    keep_days: float | None = Field(default=None, gt=1 / 24)
    """Days that the service keeps the trained weights; null until they are deleted there."""


class Schedule:
    """Rows and learning rate of each optimizer step, as transformers' Trainer takes them of one seed."""

    def __init__(self, rows: int, settings: Optimised, seed: int) -> None:
        """Lay out.

        Args:
            rows: to train on.
            settings: epochs, batch size, rate, warm-up and schedule.
            seed: of the row order.
        """
        self.rows, self.size, self.seed = rows, settings.batch_size, seed
        self.an_epoch, self.steps = settings.an_epoch(rows), settings.steps_over(rows)
        self.rates = _rates(settings, self.steps)

    def batch(self, step: int) -> list[int]:
        """The rows of a step, which counts from 0."""
        epoch, place = divmod(step, self.an_epoch)
        return self._order(epoch)[place * self.size : (place + 1) * self.size]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as one training
    def _order(self, epoch: int) -> list[int]:
        """As accelerate's seedable sampler draws it."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order: list[int] = torch.randperm(self.rows, generator=generator).tolist()
        return order


def _rates(settings: Optimised, steps: int) -> list[float]:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr)
    schedule = get_scheduler(settings.schedule, optimizer, round(settings.warmup * steps), steps)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


@dataclass(frozen=True)
class Tokens:
    """What a training sends."""

    trained: int
    """In passes with gradients."""
    read: int
    """In passes without."""


@dataclass(frozen=True)
class Sent:
    """A batch of rows as it is sent."""

    batch: dict[str, Any]
    sizes: list[int]
    """Choices of each row."""
    run: list[int]
    """Which of them, one row's after the other's, are sent."""
    requests: list[packing.Request]
    """Those."""

    def mean(self, losses: torch.Tensor) -> torch.Tensor:
        """The mean of the rows' losses, by their weights where they have them."""
        return (losses * self.batch["weight"].to(losses)).mean() if "weight" in self.batch else losses.mean()


@dataclass(frozen=True)
class Work:
    """What is learnt, and how a batch of it is sent."""

    learning: Learning
    train: list[Row]
    held: list[Row]
    loss: Callable[..., torch.Tensor]

    @functools.cached_property
    def prior(self) -> torch.Tensor:
        """The labels' mean."""
        return torch.tensor([row["targets"] for row in self.train]).mean(dim=0)

    def asked(self, rows: Sequence[Row], *, every: bool) -> Sent:
        """A batch of rows; of whole replies those with weight in the loss are sent, or every one."""
        batch = weighted(functools.partial(collated, "requests"), rows)
        flat = [request for row in batch["requests"] for request in row]
        sizes = [len(row) for row in batch["requests"]]
        run = replies_run(batch["targets"], sizes, every=every or not self.learning.language_model)
        return Sent(batch, sizes, run, [flat[i] for i in run])

    def table(self, loglik: torch.Tensor, sent: Sent) -> torch.Tensor:
        """Log-likelihoods of what was sent as the log-probabilities that a loss takes, shape [rows, choices]."""
        if self.learning.language_model:
            return reply_table(loglik, sent.run, sent.batch["targets"], sent.sizes, self.learning.reply_tokens)
        return normalised(loglik, sent.batch["targets"], sent.sizes)

    def datum(self, request: packing.Request, weight: float = 0.0) -> Any:
        """A request as the service takes it, cut from the left as in ``hf``.

        Args:
            request: prompt and continuation.
            weight: of each token of the continuation.
        """
        tinker, (context, continuation) = sdk(), request
        whole = [*context, *continuation][-(self.learning.lm.max_length + 1) :]
        n = min(len(continuation), len(whole) - 1)
        weights = [0.0] * (len(whole) - 1 - n) + [weight] * n
        shape = [len(weights)]
        return tinker.Datum(
            model_input=tinker.ModelInput.from_ints(whole[:-1]),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData(data=whole[1:], dtype="int64", shape=shape),
                "weights": tinker.TensorData(data=weights, dtype="float32", shape=shape),
            },
        )

    def tokens(self, schedule: Schedule, evaluations: int) -> Tokens:
        """What the whole training sends."""
        longest = self.learning.lm.max_length

        def of(rows: Sequence[Row], *, every: bool) -> int:
            return sum(min(len(c) + len(t) - 1, longest) for c, t in self.asked(rows, every=every).requests)

        a_row = [of([row], every=False) for row in self.train]
        trained = sum(a_row[i] for step in range(schedule.steps) for i in schedule.batch(step))
        held = of(self.held, every=True) * evaluations if self.held else 0
        return Tokens(trained, held + (0 if self.learning.language_model else trained))


def evaluation_steps(steps: int) -> list[int]:
    """After which steps held-back rows are scored, as a local training does."""
    every = curve_every(steps)
    return list(range(every, steps + 1, every))


def _sums(logprobs: Iterable[torch.Tensor], requests: Sequence[packing.Request]) -> torch.Tensor:
    """Log-likelihoods of the continuations, of the log-probabilities of all tokens."""
    return torch.stack([of_one[-len(t) :].sum() for of_one, (_, t) in zip(logprobs, requests, strict=True)])


def _told(output: Any) -> Iterator[torch.Tensor]:
    """The log-probabilities of all tokens in an answer of the service."""
    return (torch.as_tensor(one["logprobs"].data).float() for one in output.loss_fn_outputs)


class Loop:
    """Runs the steps, from wherever a training has come to."""

    def __init__(
        self, run: TinkerRun, work: Work, schedule: Schedule, settings: AtService, title: str, note: Callable[[str], None]
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            run: of the training.
            work: what is learnt.
            schedule: in which steps.
            settings: the optimizer's.
            title: of the progress bar.
            note: takes lines for the user.
        """
        self.run, self.work, self.schedule, self.settings = run, work, schedule, settings
        self.title, self.note = title, note
        self.curve: list[Point] = []
        self.sent = 0
        """Steps that this process had done."""

    def train(self, reached: Reached) -> Reached:
        """Do the steps after `reached`; where a session is lost, once again from what was saved since.

        Returns:
            The finished weights.

        Raises:
            UserError: the service fails again without progress, a loss that is not finite.
        """
        stuck = False
        while True:
            try:
                with self.run.session():
                    return self.run.finish(self._steps(reached), self.schedule.steps, self.settings.keep_days)
            except LostError as error:
                again = self.run.reached(self.schedule.steps, self.note)
                if stuck and again.step <= reached.step:
                    raise
                stuck = again.step <= reached.step
                self.note(f"{self.title}: {error} Going on from step {again.step}.")
                reached = again

    def _steps(self, reached: Reached) -> Any:
        training = self.run.open(reached)
        self.curve = [p for p in self.run.record.curve if p["step"] <= reached.step]
        pending: deque[tuple[int, Sent, Any, Any, list[float]]] = deque()
        evaluations, last = set(evaluation_steps(self.schedule.steps)) if self.work.held else set(), self.schedule.steps
        with (
            stopping.training(),
            notebook.bar(total=last, initial=reached.step, desc=self.title, unit="step") as bar,
        ):
            for step in range(reached.step, last):
                pending.append((step, *self._submit(training, step)))
                done, ending = step + 1, stopping.asked()
                saved = done < last and (ending or done % self.settings.save_steps == 0)
                due = saved or done in evaluations or done == last
                while len(pending) >= (1 if due else AHEAD):
                    self._settle(*pending.popleft())
                    bar.update(1)
                    bar.set_postfix(loss=f"{self.curve[-1]['loss']:.3f}")
                if done in evaluations:
                    self.curve.append(self._evaluated(training, done))
                if saved:
                    self.run.keep(curve=self.curve)
                    self.run.save(training, done)
                if ending:
                    raise stopping.ending()
        self.run.keep(curve=self.curve)
        return training

    def _submit(self, training: Any, step: int) -> tuple[Sent, Any, Any, list[float]]:
        """Send a step: its passes and the optimizer's; a loss that is formed here comes into the list."""
        sent = self.work.asked([self.work.train[i] for i in self.schedule.batch(step)], every=False)
        losses: list[float] = []
        settings = self.settings
        adam = known(
            sdk().AdamParams,
            learning_rate=self.schedule.rates[step],
            beta1=settings.beta1,
            beta2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            grad_clip_norm=settings.max_grad_norm,
        )

        def send() -> tuple[Any, Any]:
            if self.work.learning.language_model:
                passes = training.forward_backward(self._weighted(sent), "cross_entropy")
            else:
                data = [self.work.datum(request) for request in sent.requests]
                passes = training.forward_backward_custom(data, self._loss(sent, step, losses))
            return passes, training.optim_step(adam)

        return sent, *self.run.service.within(f"step {step + 1} of {self.schedule.steps}", send), losses

    def _weighted(self, sent: Sent) -> list[Any]:
        """Replies with the weight of each of their tokens in the mean loss a token and row: the service sums."""
        shares = sent.batch["targets"] * sent.batch["weight"][:, None] if "weight" in sent.batch else sent.batch["targets"]
        of_choice = [share for row, size in zip(shares.tolist(), sent.sizes, strict=True) for share in row[:size]]
        scale = self.work.learning.reply_tokens * len(sent.sizes)
        return [self.work.datum(one, of_choice[i] / scale) for one, i in zip(sent.requests, sent.run, strict=True)]

    def _loss(
        self, sent: Sent, step: int, told: list[float]
    ) -> Callable[[Any, list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]]:
        """The training loss as the SDK calls it, with every token's log-probabilities."""
        state = State(step / self.schedule.steps, self.work.prior, None, classes="choices" not in self.work.train[0])

        def loss(_: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
            table = self.work.table(_sums(logprobs, sent.requests), sent)
            mean = sent.mean(self.work.loss(table, sent.batch["targets"].to(table), state))
            told.append(float(mean.detach()))
            return mean, {}

        return loss

    def _settle(self, step: int, sent: Sent, passes: Any, optimizer: Any, told: list[float]) -> None:
        """Wait for a step, and note its loss: ours, or of whole replies the service's."""
        what = f"step {step + 1} of {self.schedule.steps}"
        output = self.run.service.within(what, passes.result)
        self.run.service.within(what, optimizer.result)
        self.sent += 1
        if not told:
            table = self.work.table(_sums(_told(output), sent.requests), sent)
            told = [float(sent.mean(-(sent.batch["targets"] * table).sum(-1)))]
        if not math.isfinite(told[0]):
            raise UserError(diverged(self.title, f"the loss of step {step + 1} is infinite or NaN", self.settings.lr))
        epoch = (step + 1) / self.schedule.an_epoch
        self.curve.append({"step": step + 1, "epoch": epoch, "loss": told[0], "learning_rate": self.schedule.rates[step]})

    def _evaluated(self, training: Any, step: int) -> Point:
        """The held-back rows' part of the curve after so many steps."""
        sent = self.work.asked(self.work.held, every=True)
        data = [self.work.datum(request) for request in sent.requests]
        output = self.run.service.within(
            f"scoring held-back rows after step {step}", lambda: training.forward(data, "cross_entropy").result()
        )
        table = self.work.table(_sums(_told(output), sent.requests), sent)
        epoch = step / self.schedule.an_epoch
        return {"step": step, "epoch": epoch, **held_back_metrics(table, self.work.held)}


def loss_of(method: str, loss_args: Mapping[str, Any] | None) -> Callable[..., torch.Tensor]:
    """A loss of `LOSSES` with its settings."""
    return functools.partial(LOSSES[method], **(loss_args or {}))
