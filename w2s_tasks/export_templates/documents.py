"""Documents and shots of the exported tasks, for lm_eval's own loading: `process_docs` and `fewshot_config.process_docs`.

At home a task's `custom_dataset` does this work and a sampler follows ``--seed``. Upstream, tasks load a hub id and sort
their shots with `first_n`, so the shots here stand in the order that our samplers give at `SEED`. `w2s_tasks.export` writes
these functions, and whatever of this package they stand on, into the exported ``utils.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import datasets

from w2s_tasks.rows.ethics_shots import rated_activities
from w2s_tasks.rows.fewshot import BalancedSampler, Doc, FixedThenSeededSampler, pool
from w2s_tasks.rows.sources import _commonsense, _grouped, _pleasantness_rows

SEED = 1234  # lm_eval's default few-shot seed


def _as_function(draw: Callable[[Any], list[Doc]]) -> Callable[[Sequence[Doc], int], list[Doc]]:
    """A sampler's draw without the sampler; the export writes the method out as a function of these two arguments."""
    return lambda rows, seed: draw(SimpleNamespace(df=rows, _seed=seed))


balanced_order = _as_function(BalancedSampler._draw)
fixed_first = _as_function(FixedThenSeededSampler._draw)


def shots(docs: datasets.Dataset) -> list[Doc]:
    """Fixed, balanced, interleaved shots: the first n serve every document."""
    return balanced_order(pool(docs), SEED)


def labelled(docs: datasets.Dataset) -> datasets.Dataset:
    """Add the column ``label`` (1 = yes) to BoolQ's rows."""
    return docs.add_column("label", [int(answer) for answer in docs["answer"]])


def labelled_shots(docs: datasets.Dataset) -> list[Doc]:
    """As `shots`, for BoolQ's rows."""
    return shots(labelled(docs))


def groups_of_4(docs: datasets.Dataset) -> datasets.Dataset:
    """Number the groups of justice and deontology."""
    return _grouped(docs, 4)


def groups_of_5(docs: datasets.Dataset) -> datasets.Dataset:
    """Number the groups of virtue."""
    return _grouped(docs, 5)


def short(docs: datasets.Dataset) -> datasets.Dataset:
    """The short scenarios of commonsense."""
    return _commonsense(datasets.DatasetDict(docs=docs), long=False)["docs"]


def long(docs: datasets.Dataset) -> datasets.Dataset:
    """The long scenarios of commonsense: title | story."""
    return _commonsense(datasets.DatasetDict(docs=docs), long=True)["docs"]


def short_shots(docs: datasets.Dataset) -> list[Doc]:
    """As `shots`, from the short scenarios."""
    return shots(short(docs))


def long_shots(docs: datasets.Dataset) -> list[Doc]:
    """As `shots`, from the long scenarios; more than eight would pass an 8,192-token window."""
    return shots(long(docs))


def scenarios(docs: datasets.Dataset) -> datasets.Dataset:
    """Utilitarianism: one document a scenario, two a pair."""
    return _pleasantness_rows(docs)


def rated_shots() -> list[Doc]:
    """The paper's five rated activities, then the others in a fixed order."""
    return fixed_first(rated_activities(), SEED)
