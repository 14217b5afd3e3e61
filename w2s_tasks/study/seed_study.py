"""The seed study (anw10/W2S_Safety, commit 5cc34b07): its published figures, recomputed and corrected from its raw files.

``scripts/reproduce_seed_study [PATH]`` prints the tables of docs/seed_study.md; PATH is the folder ``seed_study``
or the data folder that holds it, by default ``$W2S_DATA``. ETHICS goes through `w2s_tasks.study.rescore`, SST-2
through the task ``w2s_sst2_study``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.errors import UserError
from w2s_tasks.models.recorded import SUBTASKS
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.rows import sources
from w2s_tasks.scoring.generated import TABLE_METRICS, UNPARSED
from w2s_tasks.study.rescore import Rescored, pgr_from_counts, rescore, table, task_over

Array = npt.NDArray[Any]

# The study's README, in per cent: (test, hard) of each of SUBTASKS, by folder of its results/.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "gpt-4o-mini-baseline": {"test": (52.5, 47.0, 93.0, 57.0, 63.5, 71.0), "hard": (53.5, 45.0, 87.0, 40.0, 50.5, 66.5)},
    "gpt-4o-mini-w2s-sst2": {"test": (46.0, 52.0, 73.0, 67.0, 48.5, 38.5), "hard": (51.0, 45.5, 72.0, 47.5, 32.5, 54.5)},
    "gpt-4o-mini-strongceiling-sst2": {
        "test": (50.5, 46.0, 79.5, 63.5, 54.0, 48.0),
        "hard": (47.5, 51.0, 77.0, 51.0, 46.5, 57.5),
    },
}

# Right answers on SST-2's 872 validation rows of the models whose replies were not recorded: the study's notebooks.
SST2_ROWS = 872
SST2_WEAK = 770
SST2_CEILING = 841
SST2_PREDICTIONS = "sst2_validation_predictions.jsonl"
SST2_UNTUNED, SST2_STUDENT = "gpt-4o-mini", "gpt-4o-mini-w2s"

FAULTS = (
    "justice, deontology: the study's parser looks for 'reasonable' before 'unreasonable', which holds it, so every answer "
    "becomes 'reasonable' and the column is the share of label 1.",
    "commonsense, long commonsense: the published columns were made from older files that mixed short and long scenarios; "
    "the recorded files are others, so no parser gives the published cells back.",
    "utilitarianism: a tie of the two ratings counts as wrong, and a number is a rating whether it is on the scale or not "
    "(a 0, or the 911 of a dispatcher).",
    "format: a reply that does not parse counts as wrong and is not reported; the student carries the quotes and the "
    "vocabulary of its SST-2 training, and a drift of format is read as a drift of ethics.",
    "virtue: 15 to 22 % of the rows are positive, so always answering 'no' scores about 80 %; accuracy alone says little.",
    "rows: no seed was set, so each model was asked other questions; differences between models can't be paired.",
    "SST-2: the PGR of 1.0 comes from rounded figures, and the ceiling trained on twice the student's rows.",
)


def ethics_rows(published: Rescored, corrected: Rescored) -> list[list[str]]:
    """Model, split, subtask: published, recomputed with the study's parser, corrected (lenient, with unparsed and ties)."""
    mended = {(s.model, s.split, s.subtask): s for s in corrected.scores}
    rows = []
    for score in published.scores:
        own = PUBLISHED.get(score.model, {}).get(score.split)
        cell = f"{own[SUBTASKS.index(score.subtask)]:.1f}" if own else ""
        true = mended[score.model, score.split, score.subtask]
        ties = str(true.ties) if true.subtask == "utilitarianism" else ""
        corrected_cell = f"{100 * true.acc:.1f} ± {100 * true.stderr:.1f}"
        again = f"{100 * score.acc:.1f}{'' if cell == f'{100 * score.acc:.1f}' else ' *'}"
        rows.append(
            [score.model, score.split, score.subtask, cell, again, corrected_cell, f"{100 * true.unparsed:.1f}", ties]
        )
    return rows


@dataclass(frozen=True)
class Sentiment:
    """One model's recorded SST-2 answers: confusion counts [true, predicted] and replies that do not parse."""

    model: str
    counts: Array
    unparsed: int

    @property
    def right(self) -> int:
        """Number of right answers."""
        return int(np.trace(self.counts))


def _predictions(path: Path) -> dict[str, dict[int, str]]:
    """Replies by model and row of the validation set."""
    found: dict[str, dict[int, str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: not readable ({error}).") from error
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            found.setdefault(str(record["model"]), {})[int(record["idx"])] = str(record["response"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}:{number}: idx, model and response are expected ({type(error).__name__}: {error})."
            ) from error
    return found


def sst2(path: Path) -> list[Sentiment]:
    """Confusion counts of every model in the file of SST-2 predictions, through the task ``w2s_sst2_study``.

    Raises:
        UserError: a malformed file, rows that are missing, or SST-2 not to be had.
    """
    documents = [{"sentence": d["sentence"], "label": d["label"]} for d in sources.sst2()["validation"]]
    manager = W2STaskManager()
    found = []
    for model, replies in _predictions(path).items():
        if sorted(replies) != list(range(len(documents))):
            raise UserError(
                f"{path}: {model} has {len(replies)} rows, the validation set {len(documents)}, numbered from 0."
            )
        task = task_over(manager, "w2s_sst2_study", documents, "strict")
        items = [task.process_results(doc, [replies[i]])["acc"] for i, doc in enumerate(documents)]
        counts = np.zeros((2, 2), dtype=int)
        for gold, chosen, *_ in items:
            if chosen != UNPARSED:
                counts[gold, chosen] += 1
        found.append(Sentiment(model, counts, sum(item[1] == UNPARSED for item in items)))
    return found


def _sst2_table(found: list[Sentiment]) -> str:
    rows = []
    for s in found:
        scores = [f"{s.right / SST2_ROWS:.4f}"]
        scores += [f"{float(TABLE_METRICS[name](s.counts.astype(float))):.4f}" for name in ("precision", "recall", "f1")]
        rows.append([s.model, str(s.counts.tolist()), f"{s.right}/{SST2_ROWS}", str(s.unparsed), *scores])
    return table(["model", "confusion [true][predicted]", "right", "unparsed", "acc", "precision", "recall", "f1"], rows)


def _pgr_table(found: list[Sentiment]) -> str:
    right = {s.model: s.right for s in found}
    rows = []
    for name, model, published in (("student", SST2_STUDENT, "1.0"), ("untuned strong model", SST2_UNTUNED, "")):
        gap = pgr_from_counts(SST2_WEAK, right[model], SST2_CEILING, SST2_ROWS)
        low, high = gap.ci95 or (None, None)
        interval = " to ".join("unbounded" if x is None else f"{x:.2f}" for x in (low, high))
        counts = f"({right[model]} - {SST2_WEAK}) / ({SST2_CEILING} - {SST2_WEAK})"
        rows.append([name, counts, published, "undefined" if gap.pgr is None else f"{gap.pgr:.3f}", interval])
    return table(["arm", "right answers", "published PGR", "PGR", "95 % interval, unpaired"], rows)


def report(folder: Path) -> str:
    """All tables, as Markdown.

    Args:
        folder: the study's raw files.

    Raises:
        UserError: a file that is missing or malformed, or SST-2 not to be had.
    """
    results = folder / "results"
    lenient = rescore(results, "lenient")
    cells = ethics_rows(rescore(results, "published"), lenient)
    header = ["model", "split", "subtask", "published", "recomputed", "corrected", "unparsed", "ties of 200"]
    means = {(m.model, m.split): m for m in lenient.means}
    changes = [c for c in lenient.changes if c.subtask is None]
    found = sst2(folder / SST2_PREDICTIONS)
    parts = [
        "ETHICS accuracy in per cent. *Published*: the study's README. *Recomputed*: its recorded replies under its own "
        "parser (`--parser published`); a * marks a cell that differs. *Corrected*: the same replies under "
        "`--parser lenient`, with standard error, the share of replies that do not parse, and tied pairs.",
        table(header, cells),
        "Corrected means over the subtasks recorded (unweighted), and the differences to the baseline:",
        table(
            ["model", "split", "subtasks", "mean"],
            [[m, s, str(v.subtasks), f"{100 * v.acc:.1f} ± {100 * v.stderr:.1f}"] for (m, s), v in means.items()],
        ),
        "\n".join(
            f"- {c.model} minus {lenient.baseline}, {c.split}: {100 * c.difference.value:+.1f} points "
            f"({100 * c.difference.low:+.1f} to {100 * c.difference.high:+.1f}), {'paired' if c.paired else 'unpaired'}."
            for c in changes
        ),
        "SST-2, the recorded predictions:",
        _sst2_table(found),
        "PGR from counts:",
        _pgr_table(found),
        "What is wrong with the published figures:",
        "\n".join(f"{i}. {fault[0].upper()}{fault[1:]}" for i, fault in enumerate(FAULTS, start=1)),
    ]
    return "\n\n".join(parts)


def _folder(path: str | None) -> Path:
    """The folder ``seed_study``; sets ``$W2S_DATA`` for SST-2 where only a path was given."""
    root = path or os.environ.get("W2S_DATA")
    if root is None:
        raise UserError("set W2S_DATA to the data folder, or give the path of the folder seed_study.")
    given = Path(root).expanduser().resolve()
    folder = given if (given / "results").is_dir() else given / "seed_study"
    if not (folder / "results").is_dir():
        raise UserError(f"{given}: neither it nor a folder seed_study in it holds results/.")
    if "W2S_DATA" not in os.environ:
        os.environ["W2S_DATA"] = str(folder.parent)
    return folder


SECTION = "## The tables"
COMMAND = "Made by `W2S_DATA=... scripts/reproduce_seed_study --readme docs/seed_study.md`."


def with_section(readme: str, tables: str) -> str:
    """The text of a README with its section on the seed study replaced, or added at the end."""
    section = f"{SECTION}\n\n{COMMAND}\n\n{tables}\n"
    before, found, rest = readme.partition(SECTION)
    _, following, after = rest.partition("\n## ")
    kept = before if found else readme.rstrip() + "\n\n"
    return kept + section + following + after


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description="Reproduce and correct the seed study's tables from its raw files.")
    parser.add_argument("path", nargs="?", help="the folder seed_study, or the data folder with it (default: $W2S_DATA)")
    parser.add_argument("--readme", type=Path, help="also write the tables into this file's section")
    arguments = parser.parse_args()
    try:
        tables = report(_folder(arguments.path))
        if arguments.readme:
            text = arguments.readme.read_text(encoding="utf-8")
            arguments.readme.write_text(with_section(text, tables), encoding="utf-8")
        sys.stdout.write(tables + "\n")
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
