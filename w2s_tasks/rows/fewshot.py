"""Few-shot examples that stay the same for every document: balanced over the classes, interleaved, seeded.

lm_eval's default sampler draws other shots for each document, which costs comparability and every prefix cache. Use in a
task's YAML: ``fewshot_config: {sampler: !function w2s_tasks.rows.fewshot.BalancedSampler, process_docs: !function
w2s_tasks.rows.fewshot.pool}``. The seed is the fourth value of lm_eval's ``--seed``.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line

log = logging.getLogger(__name__)

Doc = dict[str, Any]

POOL_PER_CLASS = 256


def pool(docs: Iterable[Doc]) -> list[Doc]:
    """A fixed sample of at most 256 training rows a class: lm_eval copies the whole pool each time it builds a task."""
    columns = getattr(docs, "column_names", None)
    if columns is None or "label" not in columns:
        return list(docs)[: 2 * POOL_PER_CLASS]
    by_class: dict[Any, list[int]] = defaultdict(list)
    for i, label in enumerate(docs["label"][:]):  # type: ignore[index] # a column alone decodes row by row
        by_class[label].append(i)
    rng = random.Random(0)  # noqa: S311 - a fixed choice, not a secret
    chosen = [i for rows in by_class.values() for i in rng.sample(rows, min(POOL_PER_CLASS, len(rows)))]
    return list(docs.select(sorted(chosen)))  # type: ignore[attr-defined]


def tell_small_pool(task: ConfigurableTask) -> None:
    """Let a task say how many few-shot examples it has where lm_eval's own samplers are asked for more.

    Raises:
        UserError: later, from the task's sampler.
    """
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        return
    draw = sampler.sample

    def sample(n: int, *args: Any, **kwargs: Any) -> Sequence[Doc]:
        try:
            drawn: Sequence[Doc] = draw(n, *args, **kwargs)
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise UserError(
                f"the task '{task.task_name}': {n} few-shot examples can't be drawn from the {len(sampler.df)} rows that it "
                f"takes them from ({one_line(error)}); the document that is asked about is never one of them. Ask for fewer."
            ) from error
        return drawn

    sampler.sample = sample


class BalancedSampler(ContextSampler):
    """The first n of one seeded sequence in which each block holds every class once, in random order.

    An even n is therefore balanced for two classes, and the shots of a smaller n begin those of a larger one.
    """

    max_shots: int | None = None

    def __init__(self, df: Sequence[Doc] | None = None, *, rnd: int | None = None, **kwargs: Any) -> None:
        super().__init__(df, rnd=rnd, **kwargs)
        self._seed = rnd
        self._sequence: list[Doc] | None = None
        self._capped = False

    def set_rnd(self, rnd: int | None) -> BalancedSampler:
        """Take a new seed: the shots are drawn anew."""
        super().set_rnd(rnd)
        self._seed, self._sequence = rnd, None
        return self

    def _draw(self) -> list[Doc]:
        rng = random.Random(self._seed)  # noqa: S311
        by_class: dict[Any, list[Doc]] = defaultdict(list)
        for doc in self.df:
            by_class[doc.get("label")].append(doc)
        classes = [by_class[label] for label in sorted(by_class, key=str)]
        for docs in classes:
            rng.shuffle(docs)
        sequence: list[Doc] = []
        for block in zip(*classes, strict=False):
            sequence += rng.sample(block, len(block))
        return sequence

    def sample(self, n: int, eval_doc: Doc | None = None, df: Sequence[Doc] | None = None, **_: Any) -> Sequence[Doc]:
        """Return the first n shots, never the document that is asked about.

        Raises:
            UserError: the training split holds fewer than n balanced examples.
        """
        if self.max_shots is not None and n > self.max_shots:
            if not self._capped:
                log.warning("%d shots asked for, %d given: more would pass an 8,192-token window", n, self.max_shots)
                self._capped = True
            n = self.max_shots
        if self._sequence is None:
            self._sequence = self._draw()
        shots = [doc for doc in self._sequence if doc != eval_doc][:n]
        if len(shots) < n:
            raise UserError(f"{n} few-shot examples asked for, {len(shots)} balanced ones in the training split.")
        return shots


class LongBalancedSampler(BalancedSampler):
    """At most eight shots, for texts of hundreds of tokens."""

    max_shots = 8


class FixedThenSeededSampler(BalancedSampler):
    """Examples marked ``fixed`` come first in their own order, the others follow in seeded order."""

    def _draw(self) -> list[Doc]:
        rest = [doc for doc in self.df if not doc.get("fixed")]
        random.Random(self._seed).shuffle(rest)  # noqa: S311
        return [doc for doc in self.df if doc.get("fixed")] + rest
