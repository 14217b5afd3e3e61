"""An lm_eval task as the trainers see it: documents with stable ids, choices, and the strings that lm_eval would score."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.api.utils import maybe_delimit
from tqdm import tqdm

from trainers.store import processes
from w2s_tasks.errors import MissingDataError, UserError, causes
from w2s_tasks.plugin import prompts
from w2s_tasks.plugin.task_settings import ROWS, settings
from w2s_tasks.rows.families import source_texts
from w2s_tasks.rows.overlap import source_of
from w2s_tasks.rows.problems import label_remedy, row_problem, targets
from w2s_tasks.rows.readable import place_of, unreadable
from w2s_tasks.scoring.replies import AnswerReader, reader_of
from w2s_tasks.user_text import shown

log = logging.getLogger(__name__)

ALWAYS = 16
"""Training rows from which on one place of all right answers is no accident."""
SEED = 1234  # lm_eval's default for numpy, torch and the shots
READS = "mark its process_results with `@reads(...)` of w2s_tasks.scoring.replies (CONTRIBUTING.md, Add a task)"


@dataclass(frozen=True)
class PromptStyle:
    """How a document becomes a prompt: shots (None for the task's own number), chat template, system message.

    ``multiturn`` makes shots turns of their own under a chat template; without it they stand in one user message.
    """

    num_fewshot: int | None = 0
    chat_template: bool = False
    system_prompt: str | None = None
    multiturn: bool = True


def rendering(docs: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Documents one by one, with a bar where rendering all of them takes more than a moment."""
    return tqdm(docs, desc="rendering", unit="row", leave=False, delay=2, disable=None if processes.is_main() else True)


def row_ids(docs: Iterable[Mapping[str, Any]]) -> list[str]:
    """A stable id a document: the hash of its content and its ordinal among equal ones (duplicates are real)."""
    seen: Counter[str] = Counter()
    ids = []
    for doc in docs:
        text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        ids.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return ids


class GivenShots:
    """Stands for lm_eval's sampler: the first of some documents."""

    def __init__(self, docs: Sequence[Mapping[str, Any]]) -> None:
        self.docs = list(docs)

    def set_rnd(self, rnd: int | None) -> None:
        """Nothing is drawn."""

    def sample(self, n: int, **_: Any) -> list[Mapping[str, Any]]:
        """The first n."""
        return self.docs[:n]


class HarnessTask:
    """An lm_eval task as the trainers see it."""

    def __init__(self, task: ConfigurableTask) -> None:
        self.task = task
        self.name = str(task.config.task)
        task.set_fewshot_seed(seed=SEED)
        # A sweep asks for the same hashes for every cell.
        self._renderer_hashes: dict[tuple[PromptStyle, int], str] = {}
        self._eval_hashes: dict[int, str] = {}
        self._asked_by: dict[int, HarnessTask] = {}
        self._trainable = self._evaluable = False

    def as_loaded(self) -> ConfigurableTask:
        """The task for one evaluation, which sets the shots in its settings."""
        task = copy.copy(self.task)
        task._config = copy.copy(self.task.config)
        return task

    def asked_by(self, prompt: int) -> HarnessTask:
        """The same task with its prompt of that number, counted from 1.

        Raises:
            UserError: it has none of that number, or one that can't be asked.
        """
        if prompt == 1:
            return self
        if prompt not in self._asked_by:
            found = HarnessTask(prompts.asked_by(self.task, prompt))
            found.check_evaluable()
            self._asked_by[prompt] = found
        return self._asked_by[prompt]

    @functools.cached_property
    def train_docs(self) -> list[dict[str, Any]]:
        """The training split, in the data set's order."""
        try:
            docs = self.task.training_docs()
        except KeyError as error:
            known = ", ".join(map(str, self.task.dataset or ()))
            raise UserError(
                f"the task '{self.name}': its data has no split {error}, which training_split names. It has: {known}."
            ) from error
        return list(docs.to_list() if hasattr(docs, "to_list") else docs)

    @functools.cached_property
    def train_ids(self) -> list[str]:
        """Row ids of the training split."""
        return row_ids(self.train_docs)

    @functools.cached_property
    def _doc_of(self) -> dict[str, dict[str, Any]]:
        return dict(zip(self.train_ids, self.train_docs, strict=True))

    def docs_of(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The training rows of these ids."""
        return [self._doc_of[i] for i in ids]

    @functools.cached_property
    def train_hash(self) -> str:
        """Hash of the training split's rows."""
        return hashlib.sha256("\n".join(self.train_ids).encode()).hexdigest()[:16]

    @functools.cached_property
    def classes(self) -> list[str]:
        """The choices, where all rows have the same ones; else none."""
        if self.task.OUTPUT_TYPE != "multiple_choice":
            return []
        first = self.choices_of(self.task.eval_docs[0])
        if isinstance(self.task.config.doc_to_choice, list | dict):
            return first
        docs = itertools.chain(self.train_docs if self.task.has_training_docs() else (), self.task.eval_docs)
        return first if all(self.choices_of(doc) == first for doc in docs) else []

    @property
    def generates(self) -> bool:
        """Whether its answers are generated, so that what is learnt of it are texts, not choices."""
        return str(self.task.OUTPUT_TYPE) == "generate_until"

    @property
    def reader(self) -> AnswerReader:
        """How it reads the answer of a reply.

        Raises:
            UserError: it does not say.
        """
        found = reader_of(self.task.config.process_results)
        if found is None:
            raise UserError(f"the task '{self.name}' does not say how the answer of a reply is read: {READS}.")
        return found

    def solution(self, doc: Mapping[str, Any]) -> str:
        """The gold solution of a document: the text that lm_eval shows as its answer in few-shot examples.

        Raises:
            UserError: its doc_to_target is no text.
        """
        target = self.task.doc_to_target(doc)
        if not isinstance(target, str) or not target.strip():
            raise UserError(
                f"the task '{self.name}': its target is what is learnt, so doc_to_target must give a text, found "
                f"{shown(target)} in {shown(doc)}."
            )
        return target

    def reply_pair(self, doc: Mapping[str, Any], reply: str, style: PromptStyle, lm: LM | None = None) -> tuple[str, str]:
        """The prompt of a document and a reply behind it, set apart as in lm_eval's few-shot examples."""
        prefix = self.task.doc_to_prefix(doc)
        if prefix:
            continuation = maybe_delimit(prefix, reply)[len(prefix) :]
        else:
            continuation = reply if style.chat_template else f"{self.task.config.target_delimiter}{reply}"
        return str(self.pairs(doc, style, lm)[0][0]), continuation

    def with_shots(self, docs: Sequence[Mapping[str, Any]], answers: Sequence[str] | Sequence[int]) -> HarnessTask:
        """The same task with these documents as its few-shot examples: gold is in none of them.

        Args:
            docs: the examples.
            answers: for each the text that stands as its answer, or the number of a choice.
        """
        task = self.as_loaded()
        told, gold = {id(doc): answer for doc, answer in zip(docs, answers, strict=True)}, self.task.doc_to_target
        task.sampler = GivenShots(docs)
        task.doc_to_target = lambda doc, asked=None: told[id(doc)] if id(doc) in told else gold(doc, asked)
        return HarnessTask(task)

    @property
    def has_classes(self) -> bool:
        """Whether each document has the same choices, and they are no ratings of which pairs are ranked."""
        return bool(self.classes) and "w2s_pair" not in self.task.features

    @property
    def is_unsafe(self) -> bool:
        """Whether its scores run programs that a model writes."""
        return bool(self.task.config.unsafe_code)

    def choices_of(self, doc: Mapping[str, Any]) -> list[str]:
        """The choices of a document."""
        return list(self.task.doc_to_choice(doc))

    def sizes(self, docs: Sequence[Mapping[str, Any]]) -> list[int]:
        """How many choices each document has."""
        if self.classes:
            return [len(self.classes)] * len(docs)
        return [len(self.choices_of(doc)) for doc in docs]

    def gold(self, doc: Mapping[str, Any]) -> int:
        """Index of the right choice; -1 where the label is none of them."""
        return self._place(self.task.doc_to_target(doc), doc)

    def _place(self, target: Any, doc: Mapping[str, Any]) -> int:
        place = place_of(target, lambda: self.task.doc_to_choice(doc))
        if place is None:
            raise UserError(
                f"the task '{self.name}': a label must be a choice's number or text, found {shown(target)} in {shown(doc)}."
            )
        return place

    def _row_problem(self, docs: Sequence[Mapping[str, Any]], split: str) -> str | None:
        with self._telling("a row", split, docs[0]):
            return row_problem(self.task, docs, split)

    def _refuse_one_place(self, places: Sequence[int]) -> None:
        """Refuse choices of which the right one always stands at the same place: controls and filters would learn that."""
        if not self.classes and len(places) >= ALWAYS and len(set(places)) == 1:
            raise UserError(
                f"the task '{self.name}': in all {len(places)} training rows choice {places[0]} is the right one, so that "
                f"its place tells the answer. Shuffle the choices: `form: shuffle`, or the task {self.name}@shuffle."
            )

    def _check_labels(self, docs: Sequence[Mapping[str, Any]], split: str) -> list[int]:
        """The places of the labels among the choices; refuses one that is none of them, with the row, counted from 0."""
        with self._telling("a label", split, docs[0]):
            found = list(targets(self.task, docs))
        places = [self._place(target, doc) for doc, target in zip(docs, found, strict=True)]
        for row, (doc, target, place) in enumerate(zip(docs, found, places, strict=True)):
            choices = self.task.doc_to_choice(doc)
            if not 0 <= place < len(choices):
                where = f"the task '{self.name}': row {row} of its {split} split has the gold label {shown(target)}"
                known = f"{len(choices)} choices (0 to {len(choices) - 1}): {shown(choices)}"
                raise UserError(f"{where}, but the task has {known}.{label_remedy(self.task, doc, choices)}")
        return places

    def check_trainable(self) -> None:
        """Refuse a task that has no right choice to learn, nothing to learn from, or rows that would be read otherwise.

        Raises:
            UserError: with the reason.
        """
        if self._trainable:
            return
        metadata = self.task.config.metadata or {}
        reason = None
        if self.generates and reader_of(self.task.config.process_results) is None:
            reason = f"its output_type is generate_until, and it does not say how the answer of a reply is read: {READS}"
        elif not self.generates and self.task.OUTPUT_TYPE != "multiple_choice":
            reason = f"its output_type is {self.task.OUTPUT_TYPE}, neither multiple_choice nor generate_until"
        elif metadata.get("trainable") is False:
            reason = "it is scored as a ranking: its documents have no right choice"
        elif self.task.multiple_input or self.task.multiple_target:
            reason = "it has several contexts or several right answers a document"
        elif not self.task.has_training_docs():
            reason = "it has no training_split"
        elif not len(self.train_docs):
            reason = "its training split is empty"
        else:
            reason = unreadable(self.task) or (None if self.generates else self._row_problem(self.train_docs, "training"))
        if reason:
            raise UserError(f"the task '{self.name}' can't be trained on: {reason}.")
        self._render(self.train_docs[0], "training")
        if self.generates:
            self._check_solutions()
        else:
            self._refuse_one_place(self._check_labels(self.train_docs, "training"))
        self._trainable = True

    def _check_solutions(self) -> None:
        """Refuse gold solutions that are no texts, or whose answers the task itself can't read; with the row, from 0."""
        for row, doc in enumerate(self.train_docs):
            with self._telling(f"row {row}", "training", doc):
                solution = self.solution(doc)
                said = self.reader.of(solution)
                ok = said is not None and self.reader.equal(said, said)
            if not ok:
                raise UserError(
                    f"the task '{self.name}': row {row} of its training split has the gold solution {shown(solution)}, in "
                    "which its own reader finds no answer, so nobody could be right. Leave the row out, or mend the reader."
                )

    @contextlib.contextmanager
    def _telling(self, rows: str, split: str, doc: Mapping[str, Any]) -> Iterator[None]:
        """Turn what a task's templates and functions raise into one clear error, before hours of work."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # templates and functions of a task's YAML raise anything
            raise UserError(
                f"the task '{self.name}': {rows} of its {split} split can't be read: {reason(error)}. Its columns: "
                f"{', '.join(map(str, doc))}."
            ) from error

    def _render(self, doc: Mapping[str, Any], split: str) -> None:
        """Render a document once, so that a wrong column is told."""
        with self._telling("row 0", split, doc):
            texts = [text for pair in self.pairs(doc, PromptStyle()) for text in pair]
        if any("\0" in text for text in texts):
            log.warning("the task '%s': a NUL character stands in row 0 of its %s split", self.name, split)

    def check_evaluable(self) -> None:
        """Refuse a task whose evaluation rows can't be asked, or have a right answer that is none of the choices.

        Raises:
            UserError: with the row, counted from 0.
        """
        if self._evaluable:
            return
        docs = list(self.task.eval_docs)
        if not docs:
            raise UserError(f"the task '{self.name}' can't be evaluated: its evaluation split is empty.")
        reason = unreadable(self.task) or self._row_problem(docs, "evaluation")
        if reason:
            raise UserError(f"the task '{self.name}' can't be evaluated: {reason}.")
        self._render(docs[0], "evaluation")
        ranking = (self.task.config.metadata or {}).get("trainable") is False
        if self.task.OUTPUT_TYPE == "multiple_choice" and not (
            self.task.multiple_input or self.task.multiple_target or ranking
        ):
            self._check_labels(docs, "evaluation")
        self._evaluable = True

    def has_system(self, style: PromptStyle) -> bool:
        """Whether prompts of this style begin with a system prompt or with the task's description."""
        return bool(style.system_prompt or self.task.config.description)

    def shots(self, style: PromptStyle) -> int:
        """How many shots a prompt of this style has; a task that says `num_fewshot: 0` gets none, whatever is asked for."""
        own = self.task.config.num_fewshot
        return int(own or 0) if style.num_fewshot is None or own == 0 else style.num_fewshot

    def check_shots(self, style: PromptStyle) -> None:
        """Refuse shots that lm_eval would leave out.

        Raises:
            UserError: the task's YAML, or a group's, says `num_fewshot: 0`.
        """
        if style.num_fewshot and self.shots(style) == 0:
            raise UserError(
                f"the task '{self.name}' would be asked without the {style.num_fewshot} shots that are wanted: it says "
                "`num_fewshot: 0`, which lm_eval lets nothing override. Take that line out of its YAML or its group."
            )

    def pairs(self, doc: Mapping[str, Any], style: PromptStyle, lm: LM | None = None) -> list[tuple[str, str]]:
        """The (context, continuation) strings of a document's choices, rendered by lm_eval's own task."""
        return [request.args for request in self.requests([doc], style, lm)]

    def requests(self, docs: Sequence[Mapping[str, Any]], style: PromptStyle, lm: LM | None = None) -> list[Instance]:
        """lm_eval's requests for documents, in order, all choices of a document together."""
        template = getattr(lm, "apply_chat_template", None) if style.chat_template else None
        out: list[Instance] = []
        for i, doc in enumerate(rendering(docs) if len(docs) > 1 else docs):
            context = self.task.fewshot_context(
                doc,
                num_fewshot=self.shots(style),
                system_instruction=style.system_prompt,
                apply_chat_template=style.chat_template,
                fewshot_as_multiturn=style.chat_template and style.multiturn,
                chat_template=template,
                gen_prefix=self.task.doc_to_prefix(doc),
            )
            built = self.task.construct_requests(
                doc=doc,
                ctx=context,
                metadata=(self.name, i, 1),
                apply_chat_template=style.chat_template,
                chat_template=template,
            )
            out += built if isinstance(built, list) else [built]
        return out

    def prompts(self, docs: Sequence[Mapping[str, Any]], style: PromptStyle) -> list[str]:
        """The plain prompt of each document."""
        return [self.pairs(doc, style)[0][0] for doc in rendering(docs)]

    def source_texts(self) -> tuple[list[str], bool]:
        """The text that tells each training row's source, and whether rows are phrases of other rows.

        From the task's ``metadata: {source: {column, contained}}`` (or `before`, `variants`: see `w2s_tasks.rows.families`);
        without it the rendered prompt.
        """
        source = source_of(self.task)
        if source is None:
            return [str(self.task.doc_to_text(doc)) for doc in rendering(self.train_docs)], False
        column = source["column"]
        if column not in self.train_docs[0]:
            raise UserError(f"the task '{self.name}' names the source column '{column}', which its rows don't have.")
        return source_texts(self.train_docs, source), bool(source.get("contained", False))

    def renderer_hash(self, style: PromptStyle, shot_seed: int = SEED) -> str:
        """Hash of all that turns a document into prompts, choices and scores, with shots drawn by that seed."""
        if (style, shot_seed) not in self._renderer_hashes:
            self._renderer_hashes[style, shot_seed] = self._hash_renderer(style, shot_seed)
        return self._renderer_hashes[style, shot_seed]

    def _hash_renderer(self, style: PromptStyle, shot_seed: int) -> str:
        n = self.shots(style)
        # lm_eval's own samplers go on where the last draw ended: what is hashed must not hang on what was hashed before.
        self.task.set_fewshot_seed(seed=shot_seed)
        shots = list(self.task.sampler.sample(n)) if n else []
        self.task.set_fewshot_seed(seed=SEED)
        parts = [settings(self.task, without=(*ROWS, "num_fewshot")), vars(style), n, shots, lm_eval.__version__]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def eval_hash(self, limit: int | None) -> str:
        """Hash of the documents that an evaluation with this limit asks."""
        n = self.eval_rows(limit)
        if n not in self._eval_hashes:
            chosen = self.task.eval_docs.select(range(n)).to_list()
            self._eval_hashes[n] = hashlib.sha256("\n".join(row_ids(chosen)).encode()).hexdigest()[:16]
        return self._eval_hashes[n]

    def eval_rows(self, limit: int | None) -> int:
        """How many documents an evaluation with this limit asks."""
        n = len(self.task.eval_docs)
        return min(limit or n, n)


class UnloadedTask(HarnessTask):
    """A task by its name alone, where its data is not here: what a plan can still tell."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        raise MissingDataError(f"the data of '{self.name}' is not here.")

    @property
    def train_docs(self) -> list[dict[str, Any]]:
        """Not here."""
        raise MissingDataError(f"the data of '{self.name}' is not here.")

    def asked_by(self, prompt: int) -> HarnessTask:
        """By its name alone too."""
        return self if prompt == 1 else UnloadedTask(f"{self.name}@prompt{prompt}")

    def shots(self, style: PromptStyle) -> int:
        """Those that are asked for; a number of its own is not known."""
        return style.num_fewshot or 0

    def check_shots(self, style: PromptStyle) -> None:
        """Not known yet."""

    def eval_rows(self, limit: int | None) -> int:
        """The limit, where there is one."""
        if limit is None:
            raise MissingDataError(f"the data of '{self.name}' is not here.")
        return limit


def reason(error: BaseException) -> str:
    """An error with what caused it: datasets says `while generating the dataset` and keeps file and line in the cause."""
    parts: dict[str, None] = {}  # an error is often raised again in the same words
    for cause in causes(error):
        words = " ".join(str(cause).split())
        parts[f"{type(cause).__name__}: {words[:300]}{'...' if len(words) > 300 else ''}"] = None
    return "; because of ".join(itertools.islice(parts, 4))
