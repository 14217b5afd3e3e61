"""A task asked with another prompt, as a task of its own: `NAME@prompt2`, `NAME@prompt3`.

A task's YAML states its paraphrases; lm_eval ignores them. The first prompt is the task's own:

    metadata:
      prompts:
        - doc_to_text: "{{text}}\\nQuestion: Is this review good or bad?\\nAnswer:"
          doc_to_choice: [bad, good]

The documents stay the same, and so does the right choice of each: other words stand for the same classes in the same order.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.task import ConfigurableTask

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.plugin.task_settings import PROMPTS, refuse_odd_choices
from w2s_tasks.rows.fewshot import tell_small_pool
from w2s_tasks.rows.readable import place_of
from w2s_tasks.user_text import shown

SETTINGS = ("doc_to_text", "doc_to_choice", "description", "target_delimiter", "gen_prefix")
"""What a paraphrase may say otherwise."""
OTHER = re.compile(r"prompt([2-9]|[1-9][0-9]+)")
"""How a prompt that is not the task's own is called behind its name."""

Prompt = Mapping[str, Any]
Doc = Mapping[str, Any]


def asked_by(task: ConfigurableTask, number: int) -> ConfigurableTask:
    """The same task with its prompt of that number, counted from 1; its rows are shared.

    Raises:
        UserError: it has no such prompt, or states one that is none.
    """
    prompts = (task.config.metadata or {}).get(PROMPTS) or []
    if not isinstance(prompts, list) or not all(isinstance(prompt, Mapping) for prompt in prompts):
        raise UserError(f"the task '{task.task_name}': metadata.prompts must be a list of prompts, {_REMEDY}")
    if number > 1 + len(prompts):
        only = f"only {1 + len(prompts)} prompts" if prompts else "only its own prompt"
        raise UserError(f"the task '{task.task_name}' has {only}, and prompt {number} is asked for; in its YAML, {_REMEDY}")
    prompt = prompts[number - 2]
    _check(task, prompt, number)
    changed = {key: prompt[key] for key in SETTINGS if key in prompt}
    own_words = _listed(task.config.doc_to_choice)
    if "doc_to_choice" in prompt and own_words and isinstance(task.doc_to_target(task.task_docs[0]), str):
        # The label names its choice, in the words of the task's own prompt.
        changed["doc_to_target"] = functools.partial(place, target=task.config.doc_to_target, choices=own_words)
    return _changed(task, f"{task.task_name}@prompt{number}", changed)


_REMEDY = (
    "metadata: {prompts: [...]} lists the paraphrases after the task's own prompt, each with a doc_to_text and, where "
    "choices are words for classes, the doc_to_choice in the same order (docs/experiments.md, Prompts)."
)


def _check(task: ConfigurableTask, prompt: Prompt, number: int) -> None:
    """Refuse a paraphrase that would ask something else."""
    where = f"the task '{task.task_name}': prompt {number} of its metadata"
    odd = next((key for key in prompt if key not in SETTINGS), None)
    if odd is not None:
        raise UserError(f"{where} sets {shown(odd)}.{nearest(str(odd), SETTINGS)} It may set {', '.join(SETTINGS)}.")
    other = next((key for key in SETTINGS if key in prompt and not isinstance(prompt[key], str | list)), None)
    if other is not None or isinstance(prompt.get("doc_to_text", ""), list):
        raise UserError(f"{where}: {other or 'doc_to_text'} must be a text, found {shown(prompt[other or 'doc_to_text'])}.")
    if "doc_to_choice" not in prompt:
        return
    refuse_odd_choices(f"{task.task_name}@prompt{number}", prompt["doc_to_choice"])
    own, given = _listed(task.config.doc_to_choice), prompt["doc_to_choice"]
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(
            f"{where} has other words for the choices, but replies are read by those of the task's own prompt; leave "
            "doc_to_choice out of it."
        )
    if own is None or not isinstance(given, list):
        raise UserError(
            f"{where}: doc_to_choice is for tasks whose rows all have the same choices, as a list of words for them; "
            "leave it out."
        )
    if len(given) != len(own) or len(set(given)) != len(given):
        raise UserError(
            f"{where} has the choices {shown(given)}: as many different ones are needed as {shown(own)}, in its order."
        )


def _listed(choices: Any) -> list[str] | None:
    """The choices of all rows; None where each row has its own."""
    return list(choices.values()) if isinstance(choices, dict) else choices if isinstance(choices, list) else None


def place(doc: Doc, *, target: str, choices: Sequence[str]) -> int:
    """Index of a document's right choice, by the words of its task's own prompt; -1 where it is none of them.

    Args:
        doc: the document.
        target: a column, or a template, which lm_eval takes for a number where it renders digits.
        choices: the choices in those words.
    """
    said = doc[target] if target in doc else utils.apply_template(target, dict(doc))
    if target not in doc and said.isdigit():
        said = int(said)
    found = place_of(said, lambda: choices)
    return -1 if found is None else found


def _changed(task: ConfigurableTask, name: str, changed: Mapping[str, Any]) -> ConfigurableTask:
    """A copy of a task with other settings of its prompt, in its few-shot examples too unless those have their own."""
    own, shots = task.config, task.fewshot_cfg
    of_shots = {key: value for key, value in changed.items() if getattr(shots, key, None) == getattr(own, key)}
    of_shots.pop("description", None)
    found = copy.copy(task)
    found._config = copy.copy(own)
    found.fewshot_cfg = dataclasses.replace(shots, **of_shots)
    metadata = {key: value for key, value in (own.metadata or {}).items() if key != PROMPTS}
    for key, value in {**changed, "task": name, "metadata": metadata, "fewshot_config": found.fewshot_cfg}.items():
        setattr(found._config, key, value)
    if hasattr(task, "sampler"):
        found.sampler = type(task.sampler)(list(task.sampler.df), rnd=None)
        tell_small_pool(found)
    return found
