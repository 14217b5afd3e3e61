"""Tasks and models of lm_eval, in process: the one renderer for training, labelling and evaluation.

`HarnessTask` shows a trainer an lm_eval task: its documents with stable ids, its choices, and the very (context,
continuation) pairs that lm_eval would score. `ModelPool` keeps one loaded base for all its adapters. `evaluate` runs
lm_eval itself and leaves its result files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator as evaluator
import numpy as np
import numpy.typing as npt
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.api.task import ConfigurableTask
from lm_eval.loggers import EvaluationTracker
from tqdm import tqdm

from trainers import processes
from trainers.costs import Budget, write_cost
from trainers.labels import LabelSet, gold_labels, row_ids
from w2s_tasks import environment, register
from w2s_tasks.errors import UserError, causes
from w2s_tasks.eval_arguments import check_arguments
from w2s_tasks.keys import refuse
from w2s_tasks.manager import W2STaskManager
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.user_text import shown

log = logging.getLogger(__name__)

RENDER_FIELDS = (
    "description",
    "doc_to_text",
    "doc_to_choice",
    "doc_to_target",
    "target_delimiter",
    "fewshot_delimiter",
    "gen_prefix",
    "output_type",
    "process_docs",
    "process_results",
)
SEED = 1234  # lm_eval's default for numpy, torch and the shots


@dataclass(frozen=True)
class PromptStyle:
    """How a document becomes a prompt: shots (None for the task's own number), chat template, system message.

    ``multiturn`` makes shots turns of their own under a chat template; without it they stand in one user message.
    """

    num_fewshot: int | None = 0
    chat_template: bool = False
    system_prompt: str | None = None
    multiturn: bool = True


def _stable(value: Any) -> Any:
    """A config value as JSON; a function by its name and the source of its whole module, never by path or address."""
    if not callable(value):
        return value
    source = inspect.getsourcefile(value)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else ""
    return f"{getattr(value, '__qualname__', type(value).__qualname__)}:{digest}"


def rendering(docs: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Documents one by one, with a bar where rendering all of them takes more than a moment."""
    return tqdm(docs, desc="rendering", unit="row", leave=False, delay=2, disable=None if processes.is_main() else True)


class HarnessTask:
    """An lm_eval task as the trainers see it."""

    def __init__(self, task: ConfigurableTask) -> None:
        self.task = task
        self.name = str(task.config.task)
        task.set_fewshot_seed(seed=SEED)
        # A sweep asks for the same hashes for every cell.
        self._renderer_hashes: dict[PromptStyle, str] = {}
        self._eval_hashes: dict[int, str] = {}
        self._evaluable = False

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
    def train_hash(self) -> str:
        """Hash of the training split's rows."""
        return hashlib.sha256("\n".join(self.train_ids).encode()).hexdigest()[:16]

    @functools.cached_property
    def choices(self) -> list[str]:
        """The choices of the first document."""
        return list(self.task.doc_to_choice(self.task.eval_docs[0]))

    def gold(self, doc: Mapping[str, Any]) -> int:
        """Index of the right choice; -1 where the label is none of them."""
        target = self.task.doc_to_target(doc)
        if isinstance(target, str):
            choices = self.task.doc_to_choice(doc)
            return choices.index(target) if target in choices else -1
        if not isinstance(target, int) and not (isinstance(target, float) and target.is_integer()):
            raise UserError(
                f"the task '{self.name}': a label must be a choice's number or text, found {shown(target)} in {shown(doc)}."
            )
        return int(target)

    def gold_labels(self, ids: Sequence[str], docs: Sequence[Mapping[str, Any]]) -> LabelSet:
        """The gold labels of training rows.

        Raises:
            UserError: a label that is none of the choices; with the row, counted from 0.
        """
        gold, choices = [self.gold(doc) for doc in docs], len(self.choices)
        bad = next((i for i, g in enumerate(gold) if not 0 <= g < choices), None)
        if bad is not None:
            raise UserError(
                f"the task '{self.name}': row {self.train_ids.index(ids[bad])} of its training split has the gold label "
                f"{gold[bad]}, but the task has {choices} choices (0 to {choices - 1}); it reads "
                f"{shown(self.task.doc_to_target(docs[bad]))} in {shown(docs[bad])}."
            )
        return gold_labels(ids, gold, choices)

    def check_trainable(self) -> None:
        """Refuse a task that has no right choice to learn, or nothing to learn from.

        Raises:
            UserError: with the reason.
        """
        metadata = self.task.config.metadata or {}
        reason = None
        if self.task.OUTPUT_TYPE != "multiple_choice":
            reason = f"its output_type is {self.task.OUTPUT_TYPE}, not multiple_choice"
        elif metadata.get("trainable") is False:
            reason = "it is scored as a ranking: its documents have no right choice"
        elif self.task.multiple_input or self.task.multiple_target:
            reason = "it has several contexts or several right answers a document"
        elif not self.task.has_training_docs():
            reason = "it has no training_split"
        elif not len(self.train_docs):
            reason = "its training split is empty"
        if reason:
            raise UserError(f"the task '{self.name}' can't be trained on: {reason}.")
        self._render(self.train_docs[0], "training")

    def _render(self, doc: Mapping[str, Any], split: str) -> None:
        """Render a document once, so that a wrong column is told before hours of work."""
        try:
            texts = [text for pair in self.pairs(doc, PromptStyle()) for text in pair]
        except UserError:
            raise
        except Exception as error:  # templates and functions of a task's YAML raise anything
            raise UserError(
                f"the task '{self.name}': row 0 of its {split} split can't be made a prompt: {_reason(error)}. Its columns: "
                f"{', '.join(map(str, doc))}."
            ) from error
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
        self._render(docs[0], "evaluation")
        ranking = (self.task.config.metadata or {}).get("trainable") is False
        if self.task.OUTPUT_TYPE == "multiple_choice" and not (
            self.task.multiple_input or self.task.multiple_target or ranking
        ):
            for row, doc in enumerate(docs):
                choices = len(self.task.doc_to_choice(doc))
                if not 0 <= self.gold(doc) < choices:
                    raise UserError(
                        f"the task '{self.name}': row {row} of its evaluation split has the label "
                        f"{shown(self.task.doc_to_target(doc))}, but the task has {choices} choices (0 to {choices - 1})."
                    )
        self._evaluable = True

    def shots(self, style: PromptStyle) -> int:
        """How many shots a prompt of this style has."""
        return int(self.task.config.num_fewshot or 0) if style.num_fewshot is None else style.num_fewshot

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

        From the task's ``metadata: {source: {column, contained}}``; without it the rendered prompt.
        """
        source = (self.task.config.metadata or {}).get("source")
        if source is None:
            return [str(self.task.doc_to_text(doc)) for doc in rendering(self.train_docs)], False
        column = source["column"]
        if column not in self.train_docs[0]:
            raise UserError(f"the task '{self.name}' names the source column '{column}', which its rows don't have.")
        return [str(doc[column]) for doc in self.train_docs], bool(source.get("contained", False))

    def renderer_hash(self, style: PromptStyle) -> str:
        """Hash of all that turns a document into prompts, choices and scores."""
        if style not in self._renderer_hashes:
            self._renderer_hashes[style] = self._hash_renderer(style)
        return self._renderer_hashes[style]

    def _hash_renderer(self, style: PromptStyle) -> str:
        config = {field: _stable(getattr(self.task.config, field, None)) for field in RENDER_FIELDS}
        n = self.shots(style)
        shots = [] if n == 0 else list(self.task.sampler.sample(n))
        parts = [config, vars(style), shots, lm_eval.__version__]
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


def _reason(error: BaseException) -> str:
    """An error with what caused it: datasets says `while generating the dataset` and keeps file and line in the cause."""
    parts: dict[str, None] = {}  # an error is often raised again in the same words
    for cause in causes(error):
        words = " ".join(str(cause).split())
        parts[f"{type(cause).__name__}: {words[:300]}{'...' if len(words) > 300 else ''}"] = None
    return "; because of ".join(itertools.islice(parts, 4))


class Harness:
    """The task index of a run, and its loaded tasks."""

    def __init__(self, include_path: Sequence[str] = ()) -> None:
        register()
        self.include_path = list(include_path)
        self._manager = W2STaskManager(include_path=self.include_path)
        self._loaded: dict[str, HarnessTask] = {}
        self._members: dict[str, list[str]] = {}
        """The tasks of every name that was asked for: a group's, or a task itself."""

    def load(self, names: Sequence[str]) -> list[HarnessTask]:
        """Load tasks and groups by name; groups become their tasks.

        Raises:
            UserError: an unknown name, or a task whose data or YAML is at fault.
        """
        out = []
        for name in names:
            if name not in self._members:
                tasks = self._load(name)
                for member, task in tasks.items():
                    self._loaded.setdefault(member, HarnessTask(task))
                    self._members.setdefault(member, [member])
                self._members[name] = list(tasks)
            out += [self._loaded[member] for member in self._members[name]]
        return out

    def task(self, name: str) -> HarnessTask:
        """Load one task.

        Raises:
            UserError: as `load`, and where the name is a group.
        """
        tasks = self.load([name])
        if len(tasks) != 1 or tasks[0].name != name:
            raise UserError(f"'{name}' is a group; name one of its tasks: {', '.join(t.name for t in tasks)}.")
        return tasks[0]

    def _load(self, name: str) -> dict[str, ConfigurableTask]:
        try:
            tasks: dict[str, ConfigurableTask] = self._manager.load([name])["tasks"]
        except UserError:
            raise
        except Exception as error:  # lm_eval raises what a task's YAML, functions and data raise: anything
            raise UserError(f"the task '{name}'{self._place(name)} can't be loaded: {_reason(error)}") from error
        return tasks

    def _place(self, name: str) -> str:
        """Where a task's YAML is, and which data files it names."""
        entry = self._manager.task_index.get(name)
        if entry is None or entry.yaml_path is None:
            return ""
        files = ((entry.cfg or {}).get("dataset_kwargs") or {}).get("data_files")
        return f" ({entry.yaml_path}{f'; its rows: {shown(files)}' if files else ''})"

    @property
    def manager(self) -> W2STaskManager:
        """The task manager, for lm_eval."""
        return self._manager


class ModelPool:
    """Loaded models: one base at a time, with whichever of its adapters is asked for."""

    def __init__(self, budget: Budget | None = None) -> None:
        self._key: str | None = None
        self._lm: LM | None = None
        self.budget = budget or Budget()
        """What services may cost."""
        self.note: Callable[[str], None] = functools.partial(print, file=sys.stderr)
        """Takes lines for the user."""

    def load(self, ref: ModelRef) -> LM:
        """The lm_eval model of a ref; a base that is loaded already only changes its adapter."""
        args = dict(ref.args)
        adapter = args.pop("peft", None) if ref.model == "w2s-hf" else None
        key = json.dumps([ref.model, args], sort_keys=True, default=str)
        limit = {"max_cost": self.budget.left} if ref.model == "w2s-chat" and self.budget.left is not None else {}
        if key != self._key:
            self._lm, self._key = None, None
            register()
            refuse(args, f"arguments of {ref.model}")
            check_arguments(ref.model, args)
            self._lm = get_model(ref.model).create_from_arg_obj(args | limit, {})
        self._key = None  # until the adapter is on: one that fails may leave the base changed
        if ref.model == "w2s-hf":
            self._lm.use_adapter(Path(adapter) if adapter else None)  # type: ignore[union-attr]
        self._key = key
        assert self._lm is not None  # noqa: S101 - for the type checker
        if limit:
            meter = self._lm.meter
            meter.max_cost = meter.cost + limit["max_cost"]
        return self._lm

    @contextlib.contextmanager
    def booked(self, lm: LM, out: Path | None = None) -> Iterator[None]:
        """Book what a service's answers cost, and keep it in ``out``; local models cost nothing."""
        meter = getattr(lm, "meter", None)
        before = meter.cost if meter else 0.0
        try:
            yield
        finally:
            self.budget.book(meter.cost - before if meter else 0.0)
        if meter and out:
            write_cost(out, meter.cost - before, None)


@contextlib.contextmanager
def _lm_eval_quiet() -> Iterator[None]:
    """Keep lm_eval's own lines and bars off the terminal; ask for the environment once a process, not once a run."""
    logger = logging.getLogger("lm_eval")
    level, original = logger.level, environment.use(evaluator)
    bars = [(module, module.tqdm) for module in (lm_eval.api.task, lm_eval.api.model)]
    for module, bar in bars:
        module.tqdm = functools.partial(bar, disable=True)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        environment.restore(evaluator, original)
        for module, bar in bars:
            module.tqdm = bar


def evaluate(
    harness: Harness,
    pool: ModelPool,
    ref: ModelRef,
    limits: Mapping[str, int | None],
    out: Path,
    *,
    style: PromptStyle,
) -> None:
    """Evaluate a model through lm_eval and leave its result and sample files below `out`.

    Args:
        harness: the task index.
        pool: where the model is loaded.
        ref: the model.
        limits: for each task its first n documents, None for all.
        out: the folder to fill.
        style: how to prompt.

    Raises:
        UserError: the files that lm_eval wrote are not whole (it swallows errors while saving).
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    lm = pool.load(ref)
    # lm_eval takes one limit for all tasks, or the rows of each.
    same = len(set(limits.values())) == 1
    chosen = {name: list(range(harness.task(name).eval_rows(limit))) for name, limit in limits.items()}
    tracker = EvaluationTracker(output_path=str(out))
    with _lm_eval_quiet(), pool.booked(lm, out):
        results = lm_eval.simple_evaluate(
            model=lm,
            model_args=dict(ref.args),
            tasks=list(limits),
            num_fewshot=style.num_fewshot,
            limit=next(iter(limits.values())) if same else None,
            samples=None if same else chosen,
            log_samples=True,
            evaluation_tracker=tracker,
            system_instruction=style.system_prompt,
            apply_chat_template=style.chat_template,
            fewshot_as_multiturn=style.chat_template and style.multiturn,
            task_manager=harness.manager,
        )
        if not processes.is_main():
            return  # the main process gathered the answers
        results["config"]["model"] = ref.model
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    read_evaluation(out, {name: len(rows) for name, rows in chosen.items()})


def label(lm: LM, task: HarnessTask, docs: Sequence[Mapping[str, Any]], ids: Sequence[str], style: PromptStyle) -> LabelSet:
    """Let a model label documents: its log-likelihoods of the choices, normalised over them.

    Args:
        lm: any lm_eval model that scores continuations.
        task: whose prompts and choices.
        docs: the rows to label.
        ids: their row ids.
        style: how to prompt.
    """
    share = -(-len(docs) // processes.count())  # each process labels a stretch
    own = docs[processes.index() * share : (processes.index() + 1) * share]
    answers = lm.loglikelihood(task.requests(own, style, lm)) if len(own) else []
    logliks: npt.NDArray[Any] = np.array(processes.gather([float(a[0]) for a in answers])).reshape(len(docs), -1)
    weights = np.exp(logliks - logliks.max(axis=1, keepdims=True))
    soft = weights / weights.sum(axis=1, keepdims=True)
    return LabelSet(tuple(ids), soft, np.array([task.gold(doc) for doc in docs], dtype=int))
