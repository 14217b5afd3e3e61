"""`task_from_rows`: a user's rows as an lm_eval task, in a folder for `--include_path`, the stock lm_eval's too.

    task = task_from_rows(frame, text="{{review}}\\nSentiment:", choices=["negative", "positive"], label="label", name="my")
    Experiment(task=task, weak=..., strong=...)

The folder holds a YAML of lm_eval's own form and the rows as parquet, a file a split. Columns are named in it and never
copied into a template: what stands in the rows is data, braces and all.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line, shown

if TYPE_CHECKING:
    import pyarrow as pa

    from w2s_tasks.own.tables import Columns

log = logging.getLogger(__name__)

FORM = 1
"""Of the folder; a higher number makes every task anew."""
LABEL, GROUP = "label", "w2s_group"
"""Columns that the task adds: the number of the right choice, and that of the group of rows."""
CHECKED = 20
"""Documents that are rendered with shots before a task is written, as `w2s validate` does."""
BALANCED = 8
"""Training rows of every label from which on shots are balanced, and the same for all questions."""


@dataclass(frozen=True)
class RowsTask:
    """A task made of rows: its name, and the folder that `include_path` names."""

    name: str
    folder: str


class Function(str):
    """The name of a function of this suite, which stands behind ``!function`` in the YAML."""

    __slots__ = ()


@dataclass(frozen=True)
class Prepared:
    """A task before it is written."""

    name: str
    settings: Mapping[str, Any]
    """Of its YAML, without the files of its rows."""
    parts: Mapping[str, Columns]
    """The rows by split, as they are written."""

    @property
    def files(self) -> dict[str, str]:
        """The file of each split."""
        return {split: f"{self.name}_{split}.parquet" for split in self.parts}

    def digest(self) -> str:
        """Hex digits that tell it from every other task, the same for the same rows and settings."""
        text = json.dumps([FORM, self.settings, self.parts], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def task_from_rows(
    rows: Any,
    *,
    text: str,
    choices: Sequence[str] | str,
    label: str,
    name: str,
    split: str | None = None,
    test: float | None = None,
    seed: int = 0,
    group: str | None = None,
    shuffle: bool = False,
    description: str | None = None,
) -> RowsTask:
    """Make a task of rows, in the cache; the same rows and settings give the same folder again.

    Args:
        rows: a pandas frame, a `datasets.Dataset` or a list of dicts; or a dict of splits (train, validation, test) to any
            of them, as a `DatasetDict` is. The shots of few-shot prompts come from train.
        text: the column that is the prompt, or a template of columns such as `"{{premise}}\\nSo: {{claim}}?"`.
        choices: the texts to choose from in all rows, or the column that holds a list of them in each row.
        label: the column with the right choice: its text, or its number from 0.
        name: what the task is called.
        split: a column that says train, validation or test.
        test: the share of the rows to evaluate on, where nothing else says; 1 for a task that is evaluated alone. Rows with
            the same prompt, or of the same group, stay on one side.
        seed: of that share.
        group: a column: its rows belong together (a passage, an author). Errors are clustered by it, no split parts them.
        shuffle: put each row's own choices in an order drawn by row.
        description: what stands before the shots and the question.

    Raises:
        UserError: what is wrong with which row and column, before anything is written.
    """
    from w2s_tasks.own.parts import by_name
    from w2s_tasks.rows.assets import cache_dir

    columns, splits = by_name(rows)
    prepared = prepare(
        columns,
        splits,
        text=text,
        choices=choices,
        label=label,
        name=name,
        split=split,
        test=test,
        seed=seed,
        group=group,
        shuffle=shuffle,
        description=description,
    )
    folder = cache_dir() / "own_tasks" / f"{name}-{prepared.digest()}"
    files = [f"{name}.yaml", *prepared.files.values()]
    if not all((folder / file).is_file() for file in files):
        check(prepared)
        write(prepared, folder)
    return RowsTask(name, str(folder))


# ---- what it is made of -----------------------------------------------------------------------------------------------


def prepare(
    columns: Columns,
    splits: list[str] | None,
    *,
    text: str,
    choices: Sequence[str] | str,
    label: str,
    name: str,
    split: str | None = None,
    test: float | None = None,
    seed: int = 0,
    group: str | None = None,
    shuffle: bool = False,
    description: str | None = None,
    where: str = "rows",
) -> Prepared:
    """The task of `task_from_rows`, from columns and, where the rows come in splits, the split of each row.

    Raises:
        UserError: as there; `where` is what the rows are called.
    """
    from w2s_tasks.own import checks, tables
    from w2s_tasks.own.parts import SPLITS

    checks.check_name(name)
    _check_columns(columns, label, group, where)
    own_choices = isinstance(choices, str)
    if shuffle and not own_choices:
        raise UserError("shuffle: all rows have the same choices, whose order says nothing; leave it out.")
    if not own_choices:
        choices = checks.plain_choices(choices)
    listed = checks.choices_of(columns, choices, where)
    labels = checks.places(columns, label, listed, where)
    asked = checks.prompts(columns, text, label, where)
    if own_choices and shuffle:
        listed, labels = _shuffled(asked, listed, labels)
        columns = {**columns, str(choices): listed}
    groups = None if group is None else [str(value) for value in columns[group]]
    names = _splits(columns, splits, split, test, seed, asked, groups, where)
    columns = {**columns, LABEL: labels}
    if groups is not None:
        from w2s_tasks.rows.families import numbered

        columns[GROUP] = numbered(groups)
    rows_of = {s: [row for row, own in enumerate(names) if own == s] for s in SPLITS if s in names}
    for part, rows in rows_of.items():
        checks.check_one_answer([labels[row] for row in rows], own_choices, listed[0], f"{where}: {part}")
    _tell_overlap(name, asked, groups, rows_of)
    parts = {part: tables.taken(columns, rows) for part, rows in rows_of.items()}
    settings = _settings(name, text, choices, group, description, parts)
    return Prepared(name, settings, parts)


def _check_columns(columns: Columns, label: str, group: str | None, where: str) -> None:
    from w2s_tasks.own import checks, tables

    tables.check_column(columns, label, "label")
    odd = next((name for name in columns if name.startswith(checks.RESERVED)), None)
    if odd is not None:
        raise UserError(
            f"{where}: the column {odd!r}: names with {checks.RESERVED} in front mean something here; rename it."
        )
    if LABEL in columns and label != LABEL:
        raise UserError(f"{where}: the label is {label!r}, and a column '{LABEL}' is there too; rename or drop that one.")
    if group is not None:
        tables.check_column(columns, group, "group")
        row = next((row for row, value in enumerate(columns[group]) if value is None), None)
        if row is not None:
            raise UserError(f"{where}: row {row}, column {group!r}: there is no group; fill it in, or take the row out.")


def _shuffled(
    asked: Sequence[str], listed: Sequence[Sequence[str]], labels: Sequence[int]
) -> tuple[list[list[str]], list[int]]:
    """Choices and right ones in the order that `form: shuffle` would ask them in."""
    from w2s_tasks.rows.forms import shuffled

    orders = [shuffled(prompt, choices) for prompt, choices in zip(asked, listed, strict=True)]
    choices = [[own[i] for i in order] for own, order in zip(listed, orders, strict=True)]
    return choices, [order.index(gold) for order, gold in zip(orders, labels, strict=True)]


def _splits(
    columns: Columns,
    splits: list[str] | None,
    split: str | None,
    test: float | None,
    seed: int,
    asked: Sequence[str],
    groups: Sequence[str] | None,
    where: str,
) -> list[str]:
    """The split of each row, by the one thing that says it."""
    from w2s_tasks.own.parts import by_column, by_share
    from w2s_tasks.rows.families import plain

    given = [what for what, there in (("a dict of splits", splits), ("split", split), ("test", test)) if there is not None]
    if len(given) != 1:
        told = f"{' and '.join(given)} say it twice" if given else "nothing says it"
        raise UserError(
            f"{where}: which rows are evaluated on? {told}: give a dict of splits (train, test), or split=COLUMN "
            "(`--split`), or test=0.2 (`--test`), a share drawn here."
        )
    if test is not None:
        if isinstance(test, bool) or not isinstance(test, int | float) or not 0 < test <= 1:
            raise UserError(f"test: a share of the rows above 0 and at most 1 is expected, found {shown(test)}.")
        kinds = [[plain(prompt) for prompt in asked], *([groups] if groups is not None else [])]
        return by_share(kinds, test, seed)
    names = splits if splits is not None else by_column(columns, str(split), where)
    if set(names) == {"train"}:
        raise UserError(f"{where}: all rows are in train; some have to be in test, to evaluate on.")
    return names


def _tell_overlap(
    name: str, asked: Sequence[str], groups: Sequence[str] | None, rows_of: Mapping[str, Sequence[int]]
) -> None:
    """Say how many rows are evaluated on that are learnt from too, or whose group is."""
    from w2s_tasks.rows.families import plain

    evaluated = "test" if "test" in rows_of else "validation"
    if groups is not None:
        learnt = {groups[row] for row in rows_of.get("train", ())}
        both = sum(groups[row] in learnt for row in rows_of[evaluated])
        if both:
            log.warning("%s: %d of the %d %s rows have their group in train", name, both, len(rows_of[evaluated]), evaluated)
    trained = {plain(asked[row]) for row in rows_of.get("train", ())}
    twice = sum(plain(asked[row]) in trained for row in rows_of[evaluated])
    if twice:
        log.warning(
            "%s: %d of the %d %s rows stand in train too, so that they are no test of what was learnt; "
            "`split: {drop_overlap: exact}` leaves them out of an experiment's training rows",
            name,
            twice,
            len(rows_of[evaluated]),
            evaluated,
        )


# ---- its YAML ---------------------------------------------------------------------------------------------------------


def _settings(
    name: str,
    text: str,
    choices: Sequence[str] | str,
    group: str | None,
    description: str | None,
    parts: Mapping[str, Columns],
) -> dict[str, Any]:
    settings: dict[str, Any] = {"task": name}
    settings |= {f"{'training' if part == 'train' else part}_split": part for part in parts}
    settings["fewshot_split"] = pool = next(iter(parts))
    settings["output_type"] = "multiple_choice"
    settings |= {"description": description} if description else {}
    own_choices = isinstance(choices, str)
    settings |= {"doc_to_text": text, "doc_to_choice": choices if own_choices else list(choices)}
    listed = itertools.chain(*(part[choices] for part in parts.values())) if isinstance(choices, str) else [choices]
    # Where choices are numbers, a plain column could be meant as the text of one.
    digits = any(choice.isdigit() for own in listed for choice in own)
    settings["doc_to_target"] = f"{{{{{LABEL}|int}}}}" if digits else LABEL
    labels = parts[pool][LABEL]
    if not own_choices and min(labels.count(place) for place in range(len(choices))) >= BALANCED:
        settings["fewshot_config"] = {
            "sampler": Function("w2s_tasks.rows.fewshot.BalancedSampler"),
            "process_docs": Function("w2s_tasks.rows.fewshot.pool"),
        }
    metadata: dict[str, Any] = {"version": 1.0}
    if group is None:
        names = ["acc", "acc_norm"] if own_choices else ["acc"]
        settings["metric_list"] = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in names]
    else:
        scores = "w2s_tasks.scoring.metrics"
        settings["process_results"] = Function(f"{scores}.clustered")
        settings["metric_list"] = [
            {"metric": "acc", "aggregation": Function(f"{scores}.grouped_acc"), "higher_is_better": True},
            {"metric": "acc_stderr", "aggregation": Function(f"{scores}.grouped_acc_stderr"), "higher_is_better": False},
        ]
        metadata["source"] = {"column": group}
    return settings | {"metadata": metadata}


REMARKS = {
    "task": "The name; with --include_path THIS_FOLDER it is a task for `lm_eval`, `w2s eval` and an experiment.",
    "dataset_path": "The rows. lm_eval takes a relative path from the folder that it is started in, so these are whole.",
    "training_split": "What is learnt from, what is evaluated on, and where the shots of few-shot prompts come from.",
    "test_split": "What is evaluated on.",
    "doc_to_text": "The prompt: a column, or a template with {{column}}. One space and a choice are put behind it.",
    "doc_to_choice": "What is chosen from: these texts, or the column that holds each row's own.",
    "doc_to_target": "The number of the right choice, counted from 0.",
    "fewshot_config": "The same shots for all questions, as many of each label; without it lm_eval draws others for each.",
    "process_results": "Rows of one group are no separate evidence: the error of the accuracy is clustered.",
    "metric_list": "The scores.",
    "metadata": "Results are comparable with those of the same version: raise it when you change the task.",
}


def yaml_of(prepared: Prepared, folder: Path) -> str:
    """The YAML of a task whose rows stand in a folder, with a remark on what can be changed in it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Plain values, and functions by their tag."""

    def quoted(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        style = None if re.fullmatch(r"[\w./-]+", text) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, quoted)
    Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))
    files = {split: str(folder.absolute() / file) for split, file in prepared.files.items()}
    rows = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": files}}
    settings = {"task": prepared.name, **rows, **prepared.settings}
    lines = []
    for key, value in settings.items():
        if key in REMARKS and not (key == "test_split" and "training_split" in settings):
            lines.append(f"# {REMARKS[key]}\n")
        lines.append(yaml.dump({key: value}, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1 << 20))
    return "".join(lines)


# ---- check, and write -------------------------------------------------------------------------------------------------


def _tables(prepared: Prepared) -> dict[str, pa.Table]:
    """The rows by split, with the same types in all of them.

    Raises:
        UserError: a column with values of several types, which no table holds.
    """
    import pyarrow as pa

    arrays = {}
    for name in next(iter(prepared.parts.values())):
        values = [value for part in prepared.parts.values() for value in part[name]]
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError) as error:
            raise UserError(
                f"the column {shown(name)} can't be kept in a table: {one_line(error)}. Make its values of one kind, or "
                "drop the column."
            ) from error
    whole, tables, start = pa.table(arrays), {}, 0
    for split, part in prepared.parts.items():
        tables[split] = whole.slice(start, len(part[LABEL]))
        start += len(part[LABEL])
    return tables


def check(prepared: Prepared) -> None:
    """Refuse what `w2s validate` would refuse, and a name that is taken; nothing is written but a temporary file.

    Raises:
        UserError: the first thing that is wrong.
    """
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    from w2s_tasks import register
    from w2s_tasks.own.checks import check_free
    from w2s_tasks.validate import check_task

    check_free(prepared.name)
    register()
    digest = prepared.digest()  # datasets would take a millisecond a column for one of its own
    rows = {split: datasets.Dataset(table, fingerprint=f"{digest}{split}") for split, table in _tables(prepared).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{prepared.name}.yaml")
        path.write_text(yaml_of(prepared, Path(folder)), encoding="utf-8")
        config = load_yaml(path)
    task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: rows})
    problems = check_task(task, documents=CHECKED).problems
    if problems:
        raise UserError(f"the task '{prepared.name}' would not be asked as it is meant: {problems[0]}.")


def write(prepared: Prepared, folder: Path) -> None:
    """Write the YAML and the rows; the whole of it or nothing.

    Raises:
        UserError: the folder can't be written to.
    """
    import pyarrow.parquet as pq

    from w2s_tasks.paths import check_folder

    check_folder(folder, "the folder of the task", below=len(prepared.name) + 40)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as staging:
        for split, table in _tables(prepared).items():
            pq.write_table(table, Path(staging, prepared.files[split]))
        yaml_file = f"{prepared.name}.yaml"
        Path(staging, yaml_file).write_text(yaml_of(prepared, folder), encoding="utf-8")
        for file in (*prepared.files.values(), yaml_file):  # the YAML last: with it the task is there
            Path(staging, file).replace(folder / file)
