"""Rows of one split that stand in another: what a benchmark's number is worth where training rows give its questions away.

Three rules. ``exact``: the same text, whatever its case and white space. ``13gram``: thirteen words in a row, without case
and punctuation, as GPT-3's training data was searched for benchmarks (Brown et al. 2020, arXiv 2005.14165, appendix C); a
row of fewer words is judged by its whole text. ``source``: any row of the same source, where the task names its rows' source
(`w2s_tasks.rows.families`): another question about the passage, another trait of the sentence. What stands in a row counts,
not the words of the prompt around it: the columns that the task's ``doc_to_text`` names.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from w2s_tasks.rows.families import grams, plain, source_texts

Rule = Literal["exact", "13gram", "source"]
RULES: tuple[Rule, ...] = get_args(Rule)

Docs = Sequence[Mapping[str, Any]]


def _whole(text: str) -> set[Hashable]:
    return {plain(text)}


def _grams(text: str) -> set[Hashable]:
    return set(grams(text)) or {plain(text)}


KEYS: dict[Rule, Callable[[str], set[Hashable]]] = {"exact": _whole, "13gram": _grams, "source": _whole}
"""What of a text must not stand in another."""


def columns(task: Any, doc: Mapping[str, Any]) -> list[str]:
    """The columns that a task's prompt is made of; those with text in them, where a function makes the prompt."""
    from jinja2 import meta
    from lm_eval.utils import env

    own = (task.config.metadata or {}).get("own_text")
    if own in doc:  # a form of another task, whose prompt is a column of it
        return [str(own)]
    template = task.config.doc_to_text
    named: set[str] = set()
    if isinstance(template, str):
        named = {template} if template in doc else meta.find_undeclared_variables(env.parse(template))
    return [name for name in doc if name in named] or [name for name, value in doc.items() if isinstance(value, str)]


def source_of(task: Any) -> Mapping[str, Any] | None:
    """What a task's metadata say of its rows' sources, or None."""
    source: Mapping[str, Any] | None = (task.config.metadata or {}).get("source")
    return source


def texts_of(task: Any, docs: Docs, rule: Rule) -> list[str] | None:
    """The text by which each row is judged; None where the rule is ``source`` and single rows don't tell theirs."""
    if not docs:
        return []
    source = source_of(task)
    if rule != "source":
        names = columns(task, docs[0])
        return ["\n".join(str(doc[name]) for name in names) for doc in docs]
    if source is None or source.get("contained") or source.get("variants") or source["column"] not in docs[0]:
        return None
    return source_texts(docs, source)


def common(few: Iterable[str], many: Iterable[str], rule: Rule) -> set[Hashable]:
    """What texts have in common with other texts; the first ones are held in memory."""
    known = set().union(*map(KEYS[rule], few))
    return set().union(*(known & KEYS[rule](text) for text in many))


def overlapping(texts: Iterable[str], shared: set[Hashable], rule: Rule) -> list[bool]:
    """Whether each text holds some of what `common` found."""
    return [not shared.isdisjoint(KEYS[rule](text)) for text in texts]


@dataclass(frozen=True)
class Overlap:
    """How many of a split's rows stand in the training split, by each rule; None where a rule does not apply."""

    rows: int
    found: dict[Rule, int | None]

    def __str__(self) -> str:
        exact, grams, source = (self.found[rule] for rule in RULES)
        also = "" if source is None else f", {source:,} have their source there"
        return f"{exact:,} of {self.rows:,} rows stand in train, {grams:,} share 13 words in a row with it{also}"


def overlap(task: Any, evaluation: Docs, training: Docs) -> Overlap:
    """Count the evaluation rows of a task that stand in its training rows."""
    found: dict[Rule, int | None] = {}
    for rule in RULES:
        texts, others = texts_of(task, evaluation, rule), texts_of(task, training, rule)
        marks = None if texts is None or others is None else overlapping(texts, common(texts, others, rule), rule)
        found[rule] = None if marks is None else sum(marks)
    return Overlap(len(evaluation), found)
