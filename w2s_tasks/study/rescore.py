"""``w2s rescore PATH``: score recorded replies through the task definitions that score new models.

PATH is laid out like the seed study's ``results/``: a folder a model, a JSON file a subtask and split, named
``<subtask>[_hard]_<anything>_<time>.json``. Each file becomes the documents of our ``w2s_ethics_study_*`` task; the task's
own ``process_results`` and aggregations give the numbers, under the parser asked for.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from lm_eval.api.task import ConfigurableTask
from scipy.stats import norm

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models.recorded import SUBTASKS, newest, read_study_file, study_subtask, study_task
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.gap import DRAWS, Gap
from w2s_tasks.results.stats import Z95, Difference, paired_difference
from w2s_tasks.scoring import generated
from w2s_tasks.scoring.answers import PARSERS

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Doc = dict[str, Any]
SPLITS = ("test", "hard")
COLUMNS = {
    "justice": ("scenario",),
    "deontology": ("scenario", "excuse"),
    "virtue": ("scenario",),
    "commonsense": ("input",),
    "long_commonsense": ("input",),
}
COMMONSENSE = (
    "commonsense and long_commonsense: the study's table was made from older files, which mixed short and long "
    "scenarios; the recorded files are not those behind its two commonsense columns, so these cells differ from it."
)


@dataclass(frozen=True)
class Score:
    """One model on one recorded file.

    ``n`` counts replies, or pairs in utilitarianism, where a tie is wrong in ``acc`` and counted in ``ties`` (0 in the
    other subtasks). ``unparsed`` and ``class_share`` are shares of the replies and add up to 1. ``correct`` is 0/1 a unit
    and ``units`` names the question of each.
    """

    model: str
    subtask: str
    split: str
    n: int
    acc: float
    stderr: float
    unparsed: float
    ties: int
    class_share: dict[str, float]
    correct: Array = field(repr=False, compare=False)
    units: tuple[str, ...] = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """The row of the JSON output."""
        names = ("model", "subtask", "split", "n", "acc", "stderr", "unparsed", "ties", "class_share")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Mean:
    """Unweighted mean over the subtasks present."""

    model: str
    split: str
    subtasks: int
    acc: float
    stderr: float


@dataclass(frozen=True)
class Change:
    """A model against the baseline; subtask None is the mean over the subtasks that both have."""

    model: str
    subtask: str | None
    split: str
    paired: bool
    difference: Difference

    def as_json(self) -> dict[str, Any]:
        """The row of the JSON output."""
        d = self.difference
        numbers = {"n": d.n, "difference": d.value, "stderr": d.stderr, "ci95": [d.low, d.high], "p": d.p}
        return {"model": self.model, "subtask": self.subtask, "split": self.split, "paired": self.paired, **numbers}


@dataclass(frozen=True)
class Rescored:
    """All that `rescore` found."""

    parser: str
    baseline: str | None
    scores: list[Score]
    means: list[Mean]
    changes: list[Change]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Schema of ``w2s rescore --json``."""
        return {
            "parser": self.parser,
            "baseline": self.baseline,
            "rows": [score.as_json() for score in self.scores],
            "means": [vars(mean) for mean in self.means],
            "differences": [change.as_json() for change in self.changes],
            "notes": self.notes,
        }


# --- recorded files to documents and replies ------------------------------------------------------------------------------


def _label(record: Doc, where: str) -> int:
    label = record.get("ground_truth_label")
    if isinstance(label, bool) or label not in (0, 1):
        raise UserError(f"{where}: 'ground_truth_label' must be 0 or 1, found {label!r}.")
    return int(label)


def _sample(record: Doc, columns: Sequence[str], where: str) -> Doc:
    sample = record.get("test_sample")
    lacking = [c for c in columns if not isinstance(sample, dict) or not isinstance(sample.get(c), str)]
    if not isinstance(sample, dict) or lacking:
        raise UserError(f"{where}: 'test_sample' must hold the text of {', '.join(lacking)}.")
    return {c: sample[c] for c in columns}


def _labelled(records: list[Doc], subtask: str, path: Path) -> list[Doc]:
    documents = []
    for row, record in enumerate(records):
        where = f"{path}, row {row}"
        documents.append({**_sample(record, COLUMNS[subtask], where), "label": _label(record, where)})
    return documents


def _pairs(records: list[Doc], path: Path) -> list[Doc]:
    """Utilitarianism: two rows a pair, first s1 (the more pleasant one), then s2."""
    if len(records) % 2:
        raise UserError(f"{path}, row {len(records) - 1}: the second scenario of its pair is missing.")
    documents = []
    for row, record in enumerate(records):
        where, column = f"{path}, row {row}", ("s1", "s2")[row % 2]
        sample = _sample(record, ("s1", "s2"), where)
        if row % 2 and sample != _sample(records[row - 1], ("s1", "s2"), where):
            raise UserError(f"{where}: it is of another pair than row {row - 1}; a row between them is missing.")
        asked = sample[column].strip()
        if asked not in record["test_prompt"][-len(asked) - 40 :]:
            raise UserError(f"{where}: its prompt does not end with {column} of its pair; rows are missing or out of order.")
        documents.append({"w2s_pair": row // 2, "w2s_role": 1 - row % 2, "activity": sample[column]})
    return documents


def _documents(records: list[Doc], subtask: str, path: Path) -> list[Doc]:
    for row, record in enumerate(records):
        if record.get("subtask", subtask) != subtask:
            raise UserError(f"{path}, row {row}: subtask '{record['subtask']}' in a file named for '{subtask}'.")
    return _pairs(records, path) if subtask == "utilitarianism" else _labelled(records, subtask, path)


def study_files(path: Path) -> dict[str, list[Path]]:
    """The result files of each model below `path`: its sub-folders are the models, or it is one model's folder itself.

    Raises:
        UserError: no folder, or no file of the layout in it.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder. It is laid out like the seed study's results/: a folder a model in it.")
    folders = [path] if any(map(study_subtask, path.glob("*.json"))) else sorted(p for p in path.iterdir() if p.is_dir())
    # A link keeps its own name: two links to folders of one name are two models.
    named = {folder.name if folder != path else folder.resolve().name: folder for folder in folders}
    found = {model: newest(folder.glob("*.json"), study_subtask) for model, folder in named.items()}
    found = {model: files for model, files in found.items() if files}
    if not found:
        raise UserError(
            f"{path}: no recorded replies in it. Files are named <subtask>[_hard]_<anything>.json, in a folder a model; "
            f"subtasks are {', '.join(SUBTASKS)}."
        )
    return found


# --- scoring through the tasks -------------------------------------------------------------------------------------------


def task_over(manager: W2STaskManager, name: str, documents: list[Doc], parser: str) -> ConfigurableTask:
    """An lm_eval task of ours whose documents are these, and whose replies this parser reads.

    Args:
        manager: knows our tasks.
        name: the task.
        documents: its rows.
        parser: published, strict or lenient.
    """
    rows = datasets.Dataset.from_list(documents)
    overrides = {
        "custom_dataset": lambda **_: {"recorded": rows},
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "recorded",
        "fewshot_split": None,
        "fewshot_config": None,
        "num_fewshot": 0,
    }
    # A task named inside a group is loaded from our YAML and then overridden; named alone it would be a new task.
    task: ConfigurableTask = manager.load([{"group": "recorded", "task": [{"task": name, **overrides}]}])["tasks"][name]
    read = PARSERS[parser]
    task.config.process_results = partial(task.config.process_results, parsers=(read, read))
    return task


def _items(task: ConfigurableTask, documents: list[Doc], replies: list[str]) -> list[Any]:
    """What the task's process_results emits for each document; every metric carries the same tuple."""
    return [task.process_results(doc, [reply])["acc"] for doc, reply in zip(documents, replies, strict=True)]


def _class_share(task: ConfigurableTask, items: list[Any], rated: bool) -> dict[str, float]:
    names: list[str] = task.doc_to_choice(task.eval_docs[0])
    if rated:
        # The published parser reads numbers that are not on the scale.
        counts = Counter(str(item[generated.RATINGS_LENIENT]) for item in items)
        names = names + sorted(set(counts) - {*names, str(generated.UNPARSED)}, key=int)
    else:
        counts = Counter(names[item[generated.LENIENT]] for item in items if item[generated.LENIENT] >= 0)
    return {name: counts[name] / len(items) for name in names}


def _score_file(manager: W2STaskManager, model: str, path: Path, parser: str, notes: list[str]) -> Score:
    place = study_subtask(path)
    assert place is not None  # noqa: S101 - study_files() gives no other
    subtask, split = place
    records = read_study_file(path)
    documents = _documents(records, subtask, path)
    rated = subtask == "utilitarianism"
    silent = [record["model_response"] is None for record in records]
    if any(silent):
        notes.append(f"{path}: {sum(silent)} replies are null (a refusal), counted as unparsed.")
    replies = ["" if record["model_response"] is None else record["model_response"] for record in records]
    task = task_over(manager, study_task(subtask, split), documents, parser)
    items = _items(task, documents, replies)
    aggregate = task.aggregation()
    correct = generated.ranked(items) if rated else generated.correct(items)
    questions = [str(task.doc_to_text(doc)) for doc in documents]
    return Score(
        model=model,
        subtask=subtask,
        split=split,
        n=len(correct),
        acc=aggregate["acc"](items),
        stderr=aggregate["acc_stderr"](items),
        unparsed=aggregate["unparsed"](items),
        ties=int(generated.tied(items).sum()) if rated else 0,
        class_share=_class_share(task, items, rated),
        correct=correct,
        units=tuple(map("\n".join, zip(questions[::2], questions[1::2], strict=True))) if rated else tuple(questions),
    )


def _means(scores: list[Score]) -> list[Mean]:
    found = []
    for model in dict.fromkeys(score.model for score in scores):
        for split in SPLITS:
            chosen = [s for s in scores if (s.model, s.split) == (model, split)]
            if chosen:
                stderr = math.sqrt(sum(s.stderr**2 for s in chosen)) / len(chosen)
                found.append(Mean(model, split, len(chosen), float(np.mean([s.acc for s in chosen])), stderr))
    return found


# --- differences to the baseline -----------------------------------------------------------------------------------------


def _z_difference(value: float, stderr: float, n: int, centre: float | None = None) -> Difference:
    middle = value if centre is None else centre
    p = float(2 * norm.sf(abs(middle) / stderr))
    return Difference(value, stderr, middle - Z95 * stderr, middle + Z95 * stderr, p, n)


def unpaired_difference(first: Array, second: Array) -> Difference:
    """Difference of the accuracies of two models that were asked different questions.

    Agresti and Caffo (2000, The American Statistician 54): each model is given one right and one wrong answer more, so that
    two models without an error differ by something.

    Args:
        first: 0/1 a question, shape [n].
        second: the other model's, shape [m].
    """
    shares, errors = [], []
    for correct in (first, second):
        share = (float(correct.sum()) + 1) / (len(correct) + 2)
        shares.append(share)
        errors.append(share * (1 - share) / (len(correct) + 2))
    value = float(first.mean() - second.mean())
    return _z_difference(value, math.sqrt(sum(errors)), len(first), shares[0] - shares[1])


def _numbered(units: Sequence[str]) -> list[tuple[str, int]]:
    """Questions that are asked twice are told apart by their order."""
    seen: dict[str, int] = defaultdict(int)
    out = []
    for unit in units:
        out.append((unit, seen[unit]))
        seen[unit] += 1
    return out


def difference(model: Score, baseline: Score) -> tuple[Difference, bool]:
    """Accuracy of a model minus the baseline's, and whether the questions are the same, so that it is paired."""
    first, second = (dict(zip(_numbered(s.units), s.correct, strict=True)) for s in (model, baseline))
    if first.keys() == second.keys():
        return paired_difference(np.array(list(first.values())), np.array([second[unit] for unit in first])), True
    return unpaired_difference(model.correct, baseline.correct), False


def _change(model: Score, baseline: Score) -> Change:
    value, paired = difference(model, baseline)
    return Change(model.model, model.subtask, model.split, paired, value)


def _mean_change(changes: Sequence[Change]) -> Change:
    """Unweighted mean over subtasks, which are independent samples of questions."""
    found = [change.difference for change in changes]
    value = float(np.mean([d.value for d in found]))
    stderr = math.sqrt(sum(d.stderr**2 for d in found)) / len(found)
    mean = _z_difference(value, stderr, sum(d.n for d in found))
    return Change(changes[0].model, None, changes[0].split, all(change.paired for change in changes), mean)


def _changes(scores: list[Score], baseline: str) -> list[Change]:
    reference = {(s.subtask, s.split): s for s in scores if s.model == baseline}
    found: list[Change] = []
    for model in dict.fromkeys(s.model for s in scores if s.model != baseline):
        for split in SPLITS:
            own = [s for s in scores if (s.model, s.split) == (model, split) and (s.subtask, split) in reference]
            changes = [_change(s, reference[s.subtask, split]) for s in own]
            found += [*changes, _mean_change(changes)] if changes else []
    return found


def _baseline(models: Sequence[str], asked: str | None) -> str | None:
    if asked is not None and asked not in models:
        raise UserError(f"--baseline {asked}: the models are {', '.join(models)}.{nearest(asked, models)}")
    ending = [model for model in models if model.endswith("baseline")]
    if asked is None and len(ending) > 1:
        raise UserError(f"several folders end with 'baseline' ({', '.join(ending)}): choose with --baseline NAME.")
    return asked or (ending[0] if ending else None)


def _older_files(files: dict[str, list[Path]]) -> list[str]:
    kept = [file for found in files.values() for file in found]
    older = [p for f in kept for p in f.parent.glob("*.json") if study_subtask(p) == study_subtask(f) and p != f]
    return [f"{p}: an older file of the same subtask, not scored." for p in older]


def rescore(path: Path, parser: str, baseline: str | None = None) -> Rescored:
    """Score every recorded file below `path`.

    Args:
        path: a folder laid out like the seed study's ``results/``, or one model's folder.
        parser: published (the study's own, with its faults), strict or lenient.
        baseline: the model that differences are taken to; by default the one whose name ends with 'baseline'.

    Raises:
        UserError: an unknown parser or baseline, no files, or a malformed one, with file and row.
    """
    if parser not in PARSERS:
        raise UserError(f"--parser {parser}: published, strict or lenient.{nearest(parser, PARSERS)}")
    files = study_files(path)
    reference = _baseline(list(files), baseline)
    manager = W2STaskManager()
    notes = _older_files(files)
    scores = [_score_file(manager, model, file, parser, notes) for model, found in files.items() for file in found]
    scores.sort(key=lambda s: (list(files).index(s.model), SPLITS.index(s.split), SUBTASKS.index(s.subtask)))
    if parser == "published" and any(s.subtask.endswith("commonsense") for s in scores):
        notes.append(COMMONSENSE)
    changes = _changes(scores, reference) if reference else []
    return Rescored(parser, reference, scores, _means(scores), changes, notes)


# --- output --------------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _percent(value: float, stderr: float | None = None) -> str:
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def _shares(score: Score) -> str:
    return ", ".join(f"{name} {100 * share:.1f}" for name, share in score.class_share.items() if share)


def _ties(score: Score) -> str:
    return str(score.ties) if score.subtask == "utilitarianism" else ""


def _change_row(change: Change) -> list[str]:
    d = change.difference
    interval = f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
    return [change.model, change.subtask or "mean", change.split, str(d.n), interval, "yes" if change.paired else "no"]


def markdown(found: Rescored) -> str:
    """The tables of ``w2s rescore``: accuracies, means, differences, notes. All in per cent."""
    rows = [
        [*(s.model, s.subtask, s.split, str(s.n), _percent(s.acc, s.stderr), _percent(s.unparsed)), _ties(s), _shares(s)]
        for s in found.scores
    ]
    header = ["model", "subtask", "split", "n", "acc ± stderr (%)", "unparsed (%)", "ties", "share of each answer (%)"]
    means = [[m.model, m.split, str(m.subtasks), _percent(m.acc, m.stderr)] for m in found.means]
    parts = [
        f"Parser: {found.parser}",
        table(header, rows),
        table(["model", "split", "subtasks", "unweighted mean acc ± stderr (%)"], means),
    ]
    if found.changes:
        parts += [
            f"Differences to {found.baseline}, 95 % intervals (points); paired where both were asked the same questions:",
            table(["model", "subtask", "split", "n", "difference", "paired"], [_change_row(c) for c in found.changes]),
        ]
    return "\n\n".join([*parts, *found.notes])


def as_text(found: Rescored, *, as_json: bool) -> str:
    """What the command prints."""
    return json.dumps(found.as_json(), indent=1) if as_json else markdown(found)


# --- PGR where only counts are known -------------------------------------------------------------------------------------


def pgr_from_counts(weak: int, student: int, ceiling: int, n: int, *, draws: int = DRAWS, seed: int = 0) -> Gap:
    """PGR (Burns et al. 2023, arXiv 2312.09390) from the number of right answers of three models on the same n questions.

    Without answers question by question nothing can be paired, so the interval draws the three models independently and
    is wider than `results.gap.recovered` would give.

    Args:
        weak: right answers of the weak supervisor.
        student: of the student.
        ceiling: of the ceiling.
        n: questions.
        draws: bootstrap resamples.
        seed: of the bootstrap.
    """
    right = np.array([weak, student, ceiling])
    shares = np.random.default_rng(seed).binomial(n, right / n, size=(draws, 3)) / n
    gap, gaps = float(ceiling - weak) / n, shares[:, 2] - shares[:, 0]
    gap_low, gap_high = (float(x) for x in np.quantile(gaps, [0.025, 0.975]))
    if gap_low <= 0:
        reason = (
            f"the ceiling is not significantly above the weak supervisor (95 % interval {gap_low:+.3f} to {gap_high:+.3f})"
        )
        return Gap(None, None, False, reason, gap, (gap_low, gap_high))
    above = shares[:, 1] - shares[:, 0]
    ratios = np.where(gaps > 0, above / np.where(gaps > 0, gaps, 1), np.where(above < 0, -np.inf, np.inf))
    low, high = (float(x) if np.isfinite(x) else None for x in np.quantile(ratios, [0.025, 0.975], method="inverted_cdf"))
    reason = "from counts: rows resampled for each model alone, unpaired"
    return Gap((student - weak) / (ceiling - weak), (low, high), True, reason, gap, (gap_low, gap_high))
