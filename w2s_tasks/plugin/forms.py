"""A multiple-choice task in another form, as a task of its own: `NAME@verify`, `NAME@pair`, `NAME@shuffle`.

Each is a class that lm_eval takes from a YAML too; three lines make a form of any task, under the stock lm_eval as well:

    include: PATH/OF/THE/TASK.yaml
    task: sciq_verify
    class: !function w2s_tasks.plugin.forms.Verify

What is drawn (a coin, a distractor, a side, an order) hangs on the row's text and on ``metadata: {form_seed: N}`` alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import UserError
from w2s_tasks.plugin.prompts import OTHER
from w2s_tasks.plugin.task_settings import PROMPTS
from w2s_tasks.rows import forms, overlap
from w2s_tasks.rows.problems import label_remedy
from w2s_tasks.rows.readable import place_of
from w2s_tasks.scoring import pairwise
from w2s_tasks.user_text import shown

MARK = "@"
"""Between a task's name and that of its form."""
OWN = ("source", "candidates", "score", PROMPTS)
"""Metadata of a task that say something of its rows, prompts and scores, not of its form's."""

Doc = dict[str, Any]


class Form(ConfigurableTask):
    """A task whose rows are another's, in a form of its own; that one's settings are the configuration's."""

    name: ClassVar[str]
    shared: ClassVar[str] = "_clustered_binary_yaml"
    """The file of the settings that it shares with other tasks of its kind."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build the task, load its rows, and turn them.

        Raises:
            UserError: the task is no multiple choice with one right answer a row.
        """
        whole = {key: value for key, value in config.items() if key != "class"}
        self.base = ConfigurableTask(config=dict(whole))
        if self.base.OUTPUT_TYPE != "multiple_choice" or self.base.multiple_input or self.base.multiple_target:
            raise UserError(
                f"the task '{self.base.task_name}' has no form {self.name}: that needs multiple choice with one context and "
                "one right answer a row."
            )
        metadata = dict(whole.get("metadata") or {})
        self.seed = int(metadata.get("form_seed", 0))
        own = {key: value for key, value in metadata.items() if key not in OWN}
        asked = self.settings()
        own |= {"form": self.name, "own_text": "w2s_text", "source": {**(metadata.get("source") or {}), "column": "source"}}
        split = "train" if self.base.has_training_docs() else None
        shared = load_yaml(TASK_PATH / self.shared, resolve_func=True)
        super().__init__(
            config={
                **shared,
                "metric_list": [*shared["metric_list"], *self.own_metrics()],
                "task": whole["task"],
                "training_split": split,
                "validation_split": "validation",
                "fewshot_split": split,
                "num_fewshot": whole.get("num_fewshot"),
                **asked,
                "metadata": own | asked.get("metadata", {}),
            }
        )

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Prompt, choices, label and scores of the form, as a YAML has them."""

    def own_metrics(self) -> list[dict[str, Any]]:
        """Metrics beside those of its kind."""
        return []

    @abstractmethod
    def row(self, question: str, choices: list[str], gold: int) -> Doc:
        """A document in this form.

        Args:
            question: the document's prompt in the task's own.
            choices: its choices.
            gold: index of the right one.
        """

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Turn the base task's training and evaluation rows."""
        splits = {"validation": self.base.eval_docs}
        if self.base.has_training_docs():
            splits["train"] = self.base.training_docs()
        self.dataset = datasets.DatasetDict(
            {
                split: datasets.Dataset.from_list([row for doc in docs for row in self._turned(doc, split)])
                for split, docs in splits.items()
            }
        )

    def _turned(self, doc: Doc, split: str) -> list[Doc]:
        choices, target = self.base.doc_to_choice(doc), self.base.doc_to_target(doc)
        gold = place_of(target, lambda: choices)
        if gold is None or not 0 <= gold < len(choices):
            raise UserError(
                f"the task '{self.base.task_name}': a row of its {split} split has the gold label {shown(target)}, which is "
                f"none of its choices {shown(choices)}.{label_remedy(self.base, doc, choices)}"
            )
        right = choices[gold]
        # What says the same as the right one is right too.
        choices = [c for i, c in enumerate(choices) if i == gold or c.strip() != right.strip()]
        gold = choices.index(right)
        if len(choices) < 2:
            raise UserError(
                f"the task '{self.base.task_name}': a row of its {split} split has only the choice {shown(right)}."
            )
        source = ((self.base.config.metadata or {}).get("source") or {}).get("column")
        question = str(self.base.doc_to_text(doc))
        text = str(doc[source]) if source else question
        group = int(doc["w2s_group"]) if "w2s_group" in doc else forms.cluster(text)
        row = {**self.row(question, choices, gold), "w2s_group": group, "source": text, "w2s_text": self._own_text(doc)}
        return self.asked(row) if split == "validation" else [row]

    def _own_text(self, doc: Doc) -> str:
        """A document's own words, without the prompt around them: what overlap is judged by."""
        return "\n".join(str(doc[column]) for column in overlap.columns(self.base, doc))

    def asked(self, row: Doc) -> list[Doc]:
        """How a row is evaluated: once."""
        return [row]

    def written(self, choice: str) -> str:
        """A choice as it stands behind the task's prompt."""
        return f"{self.base.config.target_delimiter}{choice}"


class Verify(Form):
    """Is this answer right? A coin decides between the right choice and another one: see `rows.forms.verified`."""

    name = "verify"

    def settings(self) -> dict[str, Any]:
        """The question with one answer."""
        return {
            "doc_to_text": "{{question}}{{answer}}\n\nIs this answer correct?",
            "doc_to_choice": ["no", "yes"],
            "metadata": {
                PROMPTS: [
                    {
                        "doc_to_text": "{{question}}{{answer}}\n\nTrue or false: the answer above is right.",
                        "doc_to_choice": ["false", "true"],
                    },
                    {
                        "doc_to_text": "{{question}}{{answer}}\n\nA teacher marked this answer as",
                        "doc_to_choice": ["wrong", "correct"],
                    },
                ]
            },
        }

    def row(self, question: str, choices: list[str], gold: int) -> Doc:
        """The question and an answer, and whether it is right."""
        answer, label = forms.verified(question, choices, gold, self.seed)
        return {"question": question, "answer": self.written(answer), "label": label}


class Pair(Form):
    """Which of two answers is better? The right choice and another one, on sides that a coin decides.

    With ``metadata: {both_orders: true}`` every pair is evaluated on both sides.
    """

    name = "pair"

    def settings(self) -> dict[str, Any]:
        """The question with two answers, which a cross-encoder or a reward model reads one by one."""
        return {
            "process_results": pairwise.candidates,
            "doc_to_text": "{{question}}\n\nA:{{a}}\nB:{{b}}\n\nBetter answer:",
            "doc_to_choice": ["A", "B"],
            "metadata": {
                "candidates": {"question": "question", "answers": ["a", "b"]},
                PROMPTS: [
                    {
                        "doc_to_text": "{{question}}\n\nFirst answer:{{a}}\nSecond answer:{{b}}\n\nThe better one is the",
                        "doc_to_choice": ["first", "second"],
                    },
                    {
                        "doc_to_text": "{{question}}\n\nOption X:{{a}}\nOption Y:{{b}}\n\nI prefer option",
                        "doc_to_choice": ["X", "Y"],
                    },
                ],
            },
        }

    def own_metrics(self) -> list[dict[str, Any]]:
        """What the place decides; in both orders also whether an answer holds."""
        names = ("first", "consistent", "position_bias") if self.both_orders else ("first",)
        return [metric for name in names for metric in _with_error(name)]

    def row(self, question: str, choices: list[str], gold: int) -> Doc:
        """The question, both answers, and the side of the right one."""
        wrong = [choice for i, choice in enumerate(choices) if i != gold]
        worse = forms.draws(self.seed, "distractor", question, *choices).choice(wrong)
        (a, b), label = forms.paired(question, choices[gold], worse, self.seed)
        return {"question": question, "a": self.written(a), "b": self.written(b), "label": label}

    @property
    def both_orders(self) -> bool:
        """Whether every pair is evaluated on both sides."""
        return bool((self.base.config.metadata or {}).get("both_orders"))

    def asked(self, row: Doc) -> list[Doc]:
        """As it is, and where both orders are asked for with its sides changed."""
        if not self.both_orders:
            return [row]
        row["w2s_pair"] = forms.cluster("\x1f".join((row["question"], *sorted((row["a"], row["b"])))))
        return [row, {**row, "a": row["b"], "b": row["a"], "label": 1 - row["label"]}]


def _with_error(name: str) -> list[dict[str, Any]]:
    """A score of `pairwise` and its error, as a YAML lists them."""
    names = (name, f"{name}_stderr")
    return [{"metric": n, "aggregation": getattr(pairwise, n), "higher_is_better": name == "consistent"} for n in names]


class Shuffle(Form):
    """The same question with its choices in another order, for tasks whose right one always stands at the same place."""

    name = "shuffle"
    shared = "_free_text_yaml"

    def settings(self) -> dict[str, Any]:
        """The task's own prompt and choices, and its score."""
        if isinstance(self.base.config.doc_to_choice, list | dict):
            raise UserError(f"the task '{self.base.task_name}' has no form shuffle: all its rows have the same choices.")
        score = (self.base.config.metadata or {}).get("score")
        return {
            "doc_to_text": "{{question}}",
            "target_delimiter": self.base.config.target_delimiter,
            "description": self.base.config.description,
            "gen_prefix": self.base.config.gen_prefix,
            "metadata": {"score": score} if score else {},
        }

    def row(self, question: str, choices: list[str], gold: int) -> Doc:
        """The question, and the choices as they are shown."""
        order = forms.shuffled(question, choices, self.seed)
        return {"question": question, "choices": [choices[i] for i in order], "label": order.index(gold)}


FORMS: dict[str, type[Form]] = {form.name: form for form in (Verify, Pair, Shuffle)}


class Named(NamedTuple):
    """A task's name, and how the task is asked: in a form, and by which of its prompts, counted from 1."""

    task: str
    form: type[Form] | None = None
    prompt: int = 1

    @property
    def own_prompt(self) -> str:
        """The task in its form, by its own prompt."""
        return self.task if self.form is None else f"{self.task}{MARK}{self.form.name}"

    @property
    def ending(self) -> str:
        """What stands behind the task's name."""
        other = "" if self.prompt == 1 else f"{MARK}prompt{self.prompt}"
        return self.own_prompt.removeprefix(self.task) + other


def parted(name: str) -> Named:
    """The parts of NAME, NAME@FORM, NAME@prompt2 or NAME@FORM@prompt2."""
    task, _, last = name.rpartition(MARK)
    other = OTHER.fullmatch(last) if task else None
    prompt = int(other[1]) if other else 1
    rest = task if other else name
    task, _, last = rest.rpartition(MARK)
    return Named(task, FORMS[last], prompt) if task and last in FORMS else Named(rest, None, prompt)
