"""Read what lm_eval wrote: ``results_*.json`` and ``samples_*.jsonl`` of one evaluation, row by row.

The files stay as lm_eval leaves them; everything that a report shows is formed from them here.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.errors import UserError
from w2s_tasks.paths import file_name
from w2s_tasks.results.gold import gold_of
from w2s_tasks.scoring import free_text, generated, no_answer, system_place
from w2s_tasks.scoring.metrics import NO_ANSWER, pair_margins, ranked
from w2s_tasks.user_text import one_line, parse_json

Array = npt.NDArray[Any]

CLASSIFIER = "w2s-classifier"


@dataclass(frozen=True)
class TaskScores:
    """One model on one task.

    ``units`` are what is counted: documents, or pairs in a ranking task. ``predicted`` is -1 for a reply that did not parse
    and for a document that was not answered, ``unparsed`` the share of those units, and ``parsed`` tells for each unit (None
    where choices were scored and all were answered). ``correct`` is 0/1 a unit;
    ``predicted``, ``gold`` and ``logliks`` (shape [n, choices]) exist where units are documents, the first two not for
    solutions, of which right or wrong is all that is known; ``cluster`` numbers grouped
    units.
    """

    task: str
    n: int
    metrics: dict[str, float]
    stderr: dict[str, float]
    units: tuple[str, ...]
    correct: Array
    cluster: Array | None = None
    predicted: Array | None = None
    gold: Array | None = None
    logliks: Array | None = None
    sizes: Array | None = None
    """Choices of each document where they differ, shape [n]; ``logliks`` are minus infinity behind the last."""
    generated: bool = False
    unparsed: float = 0.0
    parsed: Array | None = None
    ties: float = 0.0
    """Share of the documents whose likeliest choices are equally likely, or of the pairs rated alike."""
    classes: bool = True
    """Whether a choice's number means the same in every row; not where each row has choices of its own."""
    ideal: float | None = None
    """The best value of its share where more is not better (a preference that should be even): it is in no mean."""
    mode: str | None = None
    """How choices were scored, where the model says so in the result file (w2s-chat: first_token or generated)."""
    system_prompt: str | None = None
    """Where system prompt and description stand in its prompts (`scoring.system_place`); None where there is neither."""

    @property
    def choices(self) -> int:
        """Number of choices, the most that a document has; the generated-text tasks of this suite with classes have two."""
        return self.logliks.shape[1] if self.logliks is not None else 2


def _metric_values(entry: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Split lm_eval's flat ``name,filter`` keys into values and standard errors."""
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in entry.items():
        name = key.split(",")[0]
        if "," not in key or not isinstance(value, int | float) or name.endswith("_stderr_stderr"):
            continue
        if name.endswith("_stderr"):
            if np.isfinite(value):  # a single group has none
                errors[name.removesuffix("_stderr")] = float(value)
        else:
            values[name] = float(value)
    return values, errors


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable result file of lm_eval ({one_line(error)}).") from error


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``samples_*.jsonl`` file, sorted by document."""
    rows = []
    with path.open(encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            rows.append(parse_json(line, f"{path}:{number}"))
    return sorted(rows, key=lambda row: row["doc_id"])


def _document_units(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """What tells a document apart in a paired comparison: its number and its content."""
    return tuple(f"{row['doc_id']}:{row['doc_hash'][:12]}" for row in rows)


def _pair_units(rows: list[dict[str, Any]], pairs: Array) -> tuple[str, ...]:
    """The same for the pairs of a ranking task, which begin their items."""
    hashes = {row["acc"][0]: row["doc_hash"][:12] for row in rows}
    return tuple(f"{pair}:{hashes[pair]}" for pair in pairs.tolist())


def _ranking(task: str, rows: list[dict[str, Any]], values: dict[str, float], errors: dict[str, float]) -> TaskScores:
    items = [tuple(row["acc"]) for row in rows]
    right, (pairs, margins) = ranked(items), pair_margins(items)
    if np.isnan(right).any():
        bad = pairs[int(np.argmax(np.isnan(right)))]
        raise UserError(f"{task}, pair {bad}: a rating is NaN, so there is no answer to count; the model is broken.")
    units = _pair_units(rows, pairs)
    silent = {row["acc"][0] for row in rows if no_answer.is_none(float(r[0]) for r in row["filtered_resps"])}
    parsed = np.array([pair not in silent for pair in pairs.tolist()])
    return TaskScores(
        task,
        len(units),
        values,
        errors,
        units,
        right,
        unparsed=float(1 - parsed.mean()),
        parsed=None if parsed.all() else parsed,
        ties=float((margins == 0).mean()),
    )


def tied(logliks: Array, answered: Array) -> Array:
    """The answered rows whose likeliest choices are equally likely, so that their order decides; shape [n]."""
    return np.asarray(((logliks == logliks.max(axis=1, keepdims=True)).sum(axis=1) > 1) & answered)


def _choices(row: dict[str, Any]) -> list[str]:
    """The texts of a row's choices, as the model was asked for them."""
    return [arguments["arg_1"].strip() for arguments in row.get("arguments", {}).values()]


def _documents(
    config: dict[str, Any],
    model: str,
    task: str,
    rows: list[dict[str, Any]],
    values: dict[str, float],
    errors: dict[str, float],
) -> TaskScores:
    given = [np.array([float(r[0]) for r in row["filtered_resps"]]) for row in rows]
    bad = next((row["doc_id"] for row, own in zip(rows, given, strict=True) if np.isnan(own).any()), None)
    if bad is not None:
        raise UserError(
            f"{task}, document {bad}: a log-likelihood is NaN, so there is no answer to count; the model is broken."
        )
    choices = [_choices(row) for row in rows]
    if free_text.is_normalised(config) and model != CLASSIFIER:  # whose scores are no sums over a text
        given = [free_text.per_character(x, texts) for x, texts in zip(given, choices, strict=True)]
        values, errors = (
            named | {"acc": named[free_text.SCORE]} if free_text.SCORE in named else named for named in (values, errors)
        )
    sizes = np.array([len(own) for own in given])
    present = np.arange(sizes.max()) < sizes[:, None]
    logliks = np.full(present.shape, no_answer.LOGLIK)
    logliks[present] = np.concatenate(given)
    # As lm_eval has it the first of equal log-likelihoods counts; `ties` tells how often. None at all is no answer.
    best = logliks.max(axis=1)
    answered = best > no_answer.LOGLIK
    predicted = np.where(answered, logliks.argmax(axis=1), NO_ANSWER)
    gold = np.array([gold_of(config, row) for row in rows])
    # Groups are what the task's own scoring says, (group, right) a row; a column's name means nothing.
    grouped = isinstance(rows[0].get("acc"), list)
    return TaskScores(
        task,
        len(rows),
        values,
        errors,
        _document_units(rows),
        (predicted == gold).astype(float),
        np.array([row["acc"][0] for row in rows]) if grouped else None,
        predicted,
        gold,
        # No choice of a document without an answer is likelier than another.
        np.where(answered[:, None] | ~present, logliks, 0.0),
        sizes=None if (sizes == sizes[0]).all() else sizes,
        unparsed=float(1 - answered.mean()),
        parsed=None if answered.all() else answered,
        ties=float(tied(logliks, answered).mean()),
        classes=all(texts == choices[0] for texts in choices),
        ideal=(config.get("metadata") or {}).get("ideal"),
    )


def _generated(task: str, rows: list[dict[str, Any]], values: dict[str, float], errors: dict[str, float]) -> TaskScores:
    items = [tuple(row["acc"]) for row in rows]
    share = values.get("unparsed", 0.0)
    if "pairs" in values:
        pairs, ratings = generated.pair_ratings(items)
        units, parsed = _pair_units(rows, pairs), (ratings != generated.UNPARSED).all(axis=1)
        right = generated.ranked(items)
        return TaskScores(task, len(units), values, errors, units, right, generated=True, unparsed=share, parsed=parsed)
    predicted = np.array([item[generated.LENIENT] for item in items])
    classes = "share_0" in values  # else only right and wrong are known: two wrong answers may be different ones
    return TaskScores(
        task,
        len(rows),
        values,
        errors,
        _document_units(rows),
        generated.correct(items),
        generated.groups(items) if any(item[3] != generated.NO_GROUP for item in items) else None,
        predicted if classes else None,
        np.array([item[0] for item in items]) if classes else None,
        generated=True,
        unparsed=share,
        parsed=predicted != generated.UNPARSED,
        classes=classes,
    )


def _reader(config: dict[str, Any], model: str, rows: list[dict[str, Any]]) -> Callable[..., TaskScores]:
    """How the rows of a task are read: generated text, a ranking of pairs, or a choice a document."""
    score = rows[0].get("acc")
    if config.get("output_type") == "generate_until":
        if not (isinstance(score, list) and len(score) == 4):
            raise UserError("only this suite's generated-text tasks (..._gen) can be read row by row.")
        return _generated
    return _ranking if isinstance(score, list) and len(score) == 3 else functools.partial(_documents, config, model)


def _newest(folder: Path) -> Path:
    results = list(folder.rglob("results_*.json"))
    if not results:
        raise UserError(f"{folder}: no results_*.json of lm_eval in it.")
    return max(results, key=lambda path: (path.name, path))  # its date, whatever folder lm_eval named after the model


def _samples(result: Path, task: str) -> Path:
    return result.parent / f"samples_{file_name(task)}_{result.stem.removeprefix('results_')}.jsonl"


def read_documents(folder: Path, task: str) -> list[dict[str, Any]]:
    """The documents of one task of the newest evaluation below `folder`, in the order of `TaskScores.correct`.

    Raises:
        UserError: no result file, or a file that does not parse.
    """
    return [row["doc"] for row in read_samples(_samples(_newest(folder), task))]


@dataclass(frozen=True)
class Asked:
    """One document as a model was asked it: prompt, choices, and the reply where text was generated.

    ``pair``: number and role in a ranking task, and ``rating`` what the model gave it there, else None.
    """

    prompt: str
    choices: tuple[str, ...]
    reply: str | None = None
    pair: tuple[int, int] | None = None
    rating: float | None = None


def read_asked(folder: Path, task: str) -> list[Asked]:
    """What the newest evaluation below `folder` asked, in the order of the samples.

    Raises:
        UserError: no result file, or samples that are not laid out as lm_eval writes them.
    """
    result = _newest(folder)
    with _as_lm_eval_writes(result):
        return [_asked(row) for row in read_samples(_samples(result, task))]


def _asked(row: dict[str, Any]) -> Asked:
    requests = list(row["arguments"].values())
    score = row.get("acc")
    pair = rating = None
    if isinstance(score, list) and (len(score) == 3 or "pairs" in row):
        pair = int(score[0]), int(score[1])
        rating = None if score[2] == generated.UNPARSED else float(score[2])
    first = requests[0]
    if not isinstance(first["arg_1"], str):  # settings of generation
        return Asked(str(first["arg_0"]), (), str(row["resps"][0][0]), pair, rating)
    contexts = [str(request["arg_0"]) for request in requests]
    if len(set(contexts)) > 1:  # the choices are contexts of one text
        return Asked(first["arg_1"].strip(), tuple(contexts), None, pair, rating)
    return Asked(contexts[0], tuple(_choices(row)), None, pair, rating)


@contextlib.contextmanager
def _as_lm_eval_writes(result: Path) -> Iterator[None]:
    """Files of another layout are one clear error, whatever they lack."""
    try:
        yield
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"{result}: not laid out as lm_eval writes results and samples ({type(error).__name__}: {one_line(error)}); "
            "the files are altered, or of a version that this suite does not know."
        ) from error


def read_evaluation(folder: Path, asked: Mapping[str, int] | None = None) -> dict[str, TaskScores]:
    """All tasks of the newest evaluation below `folder`.

    Args:
        folder: where lm_eval wrote.
        asked: the number of documents that each task was to be asked; None where only the result file tells.

    Raises:
        UserError: no result file, a file that does not parse, a task that is missing, or other rows than the result file
            counts or than were asked.
    """
    result = _newest(folder)
    data = _read_json(result)
    with _as_lm_eval_writes(result):
        return _read_tasks(result, data, asked)


def _check_mean(path: Path, rows: list[dict[str, Any]], scores: TaskScores) -> None:
    """Refuse a result file whose accuracy is not the mean of its rows': one of the two is altered, or of another run."""
    values = scores.metrics
    single = [float(row["acc"]) for row in rows if isinstance(row.get("acc"), int | float)]
    if "acc" not in values:
        return
    mean = float(np.mean(single)) if len(single) == len(rows) else float(scores.correct.mean())
    if not abs(mean - values["acc"]) < 1e-6:
        raise UserError(
            f"{path}: the mean accuracy of its {len(rows)} rows is {mean:.4f}, its result file says {values['acc']:.4f}; "
            "one of them is altered, or of another evaluation."
        )


def _read_tasks(result: Path, data: dict[str, Any], asked: Mapping[str, int] | None) -> dict[str, TaskScores]:
    scores = {}
    missing = set(asked or ()) - set(data["configs"])
    if missing:
        raise UserError(f"{result}: no result of {', '.join(sorted(missing))}; the evaluation is not whole.")
    for task, config in data["configs"].items():
        path = _samples(result, task)
        if not path.is_file():
            raise UserError(f"{path} is missing: run lm_eval with --log_samples.")
        rows = read_samples(path)
        expected = data["n-samples"][task]["effective"]
        if len(rows) != expected:
            raise UserError(f"{path}: {len(rows)} rows, the result file counts {expected}; the evaluation is not whole.")
        if len({row["doc_id"] for row in rows}) != len(rows):
            raise UserError(f"{path}: a document stands twice; the evaluation is altered, or two were written into one.")
        if asked is not None and asked.get(task, len(rows)) != len(rows):
            raise UserError(
                f"{path}: {len(rows)} rows, but {asked[task]} documents were asked; the evaluation is not whole."
            )
        values, errors = _metric_values(data["results"][task])
        mode = ((data.get("config") or {}).get("scoring") or {}).get(task, {}).get("mode")
        place = system_place.of_results(data, task)
        model = str((data.get("config") or {}).get("model"))
        scores[task] = replace(_reader(config, model, rows)(task, rows, values, errors), mode=mode, system_prompt=place)
        _check_mean(path, rows, scores[task])
    return scores
