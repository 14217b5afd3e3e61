"""`w2s validate`: load every task, render documents with and without shots, and check what a model would be asked.

lm_eval's own ``validate`` checks names only. With a model's tokenizer it also tells which tasks have choices that share
their first token: there a score of one token can't tell them apart, and `--mode first_token` refuses them by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape

from w2s_tasks.errors import MissingDataError, UserError
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.rows.overlap import overlap
from w2s_tasks.rows.problems import row_problem
from w2s_tasks.rows.readable import unreadable

SHOTS = (0, 4)


@dataclass
class Checked:
    """What was found of one task."""

    name: str
    sizes: dict[str, int] = field(default_factory=dict)
    example: str = ""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shared_first_token: bool = False


def _sizes(task: Any) -> dict[str, int]:
    splits = {
        "train": task.config.training_split,
        "validation": task.config.validation_split,
        "test": task.config.test_split,
    }
    return {kind: len(task.dataset[split]) for kind, split in splits.items() if split}


def _verbatim(task: Any) -> bool:
    """Whether the prompts are a publication's, letter for letter (``metadata: {verbatim: true}``), its spaces included.

    Only generated text may say so: under log-likelihood the space would belong to the choice.
    """
    return task.OUTPUT_TYPE == "generate_until" and bool((task.config.metadata or {}).get("verbatim"))


def _document_problems(task: Any, number: int, doc: dict[str, Any]) -> Iterator[str]:
    """Faults of one document, as `document N: ...`."""
    where = f"document {number}"
    delimiter = task.config.target_delimiter
    for shots in SHOTS:
        context = task.fewshot_context(doc, shots)
        for text in context if isinstance(context, list) else [context]:
            if not text.strip():
                yield f"{where}: the prompt is empty"
            if delimiter[:1].isspace() and text != text.rstrip() and not _verbatim(task):
                yield f"{where}, {shots} shots: the prompt ends in white space before the delimiter {delimiter!r}"
            # Shots show other documents, in which braces may stand as well.
            if not shots and "{{" in text and "{{" not in str(doc.values()):
                yield f"{where}: a template stands unrendered in the prompt"
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    choices, target = task.doc_to_choice(doc), task.doc_to_target(doc)
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        yield f"{where}: choices must be a list of texts, got {choices!r}"
    elif len(set(choices)) != len(choices):
        yield f"{where}: a choice occurs twice: {choices}"
    elif isinstance(target, int) and not task.multiple_input and not 0 <= target < len(choices):
        yield f"{where}: the target {target} is none of the {len(choices)} choices"
    elif isinstance(target, str) and target not in choices:
        yield f"{where}: the target {target!r} is none of the choices {choices}"


def _first_tokens_differ(task: Any, doc: dict[str, Any], tokenizer: Any) -> bool:
    context, delimiter = task.fewshot_context(doc, 0), task.config.target_delimiter
    if isinstance(context, list):
        return True
    start = len(tokenizer.encode(context))
    firsts = [tokenizer.encode(f"{context}{delimiter}{choice}")[start : start + 1] for choice in task.doc_to_choice(doc)]
    return len({tuple(f) for f in firsts}) == len(firsts)


def _row_problem(task: Any) -> str | None:
    """What is wrong with the rows of the splits, each of them whole."""
    kinds = {"evaluation": task.eval_docs, "training": task.training_docs() if task.has_training_docs() else None}
    return next((p for kind, docs in kinds.items() if docs is not None and (p := row_problem(task, docs, kind))), None)


def check_task(task: Any, documents: int, tokenizer: Any = None, *, with_overlap: bool = False) -> Checked:
    """Check one loaded task on its first `documents` evaluation documents; all of them for the overlap with train."""
    found = Checked(str(task.config.task), _sizes(task))
    task.set_fewshot_seed(seed=1234)
    docs = task.eval_docs.select(range(min(documents, len(task.eval_docs))))
    if not len(docs):
        found.problems.append("no evaluation documents")
        return found
    try:
        reason = unreadable(task) or _row_problem(task)
    except Exception as error:  # noqa: BLE001 - templates and functions of a task can raise anything; it is reported
        reason = f"{type(error).__name__}: {error}"
    if reason:
        found.problems.append(f"w2s run can't use it: {reason}")
    for number, doc in enumerate(docs):
        try:
            found.problems += _document_problems(task, number, doc)
        except Exception as error:  # noqa: BLE001 - templates and functions of a task can raise anything; it is reported
            found.problems.append(f"document {number}: {type(error).__name__}: {error}")
    if found.problems:
        return found
    found.example = str(task.fewshot_context(docs[0], 0))
    if _verbatim(task) and not found.problems:
        found.notes.append("verbatim: a publication's own prompts, white space at their ends included")
    if with_overlap and task.has_training_docs():
        found.notes.append(f"overlap: {overlap(task, list(task.eval_docs), list(task.training_docs()))}")
    if (
        tokenizer is not None
        and task.OUTPUT_TYPE == "multiple_choice"
        and not _first_tokens_differ(task, docs[0], tokenizer)
    ):
        found.shared_first_token = True
        found.notes.append("choices share their first token with this tokenizer: only whole continuations tell them apart")
    return found


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    from w2s_tasks.models.loading import NO_CODE, loading
    from w2s_tasks.models.ref import resolve

    with loading(model):
        return AutoTokenizer.from_pretrained(resolve(model), **NO_CODE)


def _load(manager: W2STaskManager, name: str) -> dict[str, Any] | str:
    """The tasks of a name, or what is wrong with it.

    Raises:
        MissingDataError: its data is not here.
    """
    try:
        tasks: dict[str, Any] = manager.load([name])["tasks"]
    except MissingDataError:
        raise
    except Exception as error:  # noqa: BLE001 - a task's YAML, functions and data can raise anything; it is reported
        return f"{type(error).__name__}: {error}"
    return tasks


def _show(console: Console, found: Checked, examples: bool) -> None:
    sizes = ", ".join(f"{kind} {n:,}" for kind, n in found.sizes.items())
    mark = "[red]!![/red]" if found.problems else "[green]ok[/green]"
    console.print(f"{mark} {found.name}: {sizes}", soft_wrap=True)
    for line in found.problems[:5] + found.notes:
        console.print(f"     {escape(line)}", soft_wrap=True)
    if examples:
        console.print(escape("\n".join(f"     | {line[:160]}" for line in found.example.splitlines()[:12])), soft_wrap=True)


def validate(
    names: Sequence[str],
    *,
    documents: int,
    model: str | None,
    mode: str,
    examples: bool,
    include_path: Sequence[str],
    console: Console,
    with_overlap: bool = False,
) -> bool:
    """Check tasks by name (all of ours by default) and print what was found; return whether all are in order.

    Of all of ours those whose data is not here are listed and left out; a task that is named has to be there.

    Raises:
        UserError: in mode first_token, the tasks whose choices share their first token.
    """
    manager = W2STaskManager(include_path=list(include_path))
    tokenizer = _tokenizer(model) if model else None
    if mode == "first_token" and tokenizer is None:
        raise UserError("--mode first_token needs --model: which tokens come first depends on the tokenizer.")
    good, refused, seen, absent = True, [], set(), []
    for name in names or manager.all_subtasks:
        try:
            loaded = _load(manager, name)
        except MissingDataError as error:
            loaded = str(error)
            if not names:
                absent.append(name)
                continue
        if isinstance(loaded, str):
            console.print(f"[red]!![/red] {name}: {escape(loaded)}", soft_wrap=True)
            good = False
            continue
        for task_name, task in loaded.items():
            if task_name not in seen:
                seen.add(task_name)
                found = check_task(task, documents, tokenizer, with_overlap=with_overlap)
                _show(console, found, examples)
                good = good and not found.problems
                refused += [found.name] if found.shared_first_token else []
    if absent:
        console.print(f"-- not checked, for their data is not here: {', '.join(absent)}", soft_wrap=True)
    if mode == "first_token" and refused:
        raise UserError(f"can't be scored by one token with the tokenizer of {model}: {', '.join(refused)}.")
    return good
