"""``scripts/reference_results OUT``: a model's scores on every task and its generated-text twin, as the READMEs show them.

The script evaluates through ``w2s eval`` into OUT; this module reads those files and prints a table for each task folder:
accuracy at 0 and 4 shots, and how often the reply of the twin names another answer than the log-likelihoods do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import UserError
from w2s_tasks.results.read import TaskScores, read_evaluation

SHOTS = (0, 4)
SECTION = "### Results"
BEFORE = "### Checklist"
FOLDERS = {"sst2": "w2s_sst2", "boolq": "w2s_boolq", "movie_reviews": "w2s_movie_reviews", "ethics": "w2s_ethics_"}
COMMAND = "scripts/reference_results"
ABOUT = f"""\
SmolLM2-135M-Instruct, accuracy in % ± standard error on the first n questions (in utilitarianism a question is a pair).
*Exact* is exact match over a group. *Generated*: the `_gen` twin, greedy, read leniently; *open* is the share of replies
that name no answer; *differs* the share of the same questions where reply and log-likelihoods disagree, open ones included.
Made by `{COMMAND} OUT --readme`."""


def read_all(out: Path) -> dict[tuple[str, int], TaskScores]:
    """Every task in the folders ``NAME_SHOTS`` below `out`."""
    found: dict[tuple[str, int], TaskScores] = {}
    for folder in sorted(p for p in out.iterdir() if p.is_dir()):
        name, _, shots = folder.name.rpartition("_")
        if name and shots.isdigit():
            found |= {(task, int(shots)): scores for task, scores in read_evaluation(folder).items()}
    if not found:
        raise UserError(f"{out}: no evaluations in it; {COMMAND} makes them.")
    return found


def differing(mc: TaskScores, gen: TaskScores) -> float:
    """Share of the questions in both where the twins give different answers (for pairs: different verdicts)."""
    other = {unit.split(":")[0]: i for i, unit in enumerate(gen.units)}
    pairs = [(i, other[unit.split(":")[0]]) for i, unit in enumerate(mc.units) if unit.split(":")[0] in other]
    if mc.predicted is not None and gen.predicted is not None:
        answers, replies = mc.predicted, gen.predicted
    else:
        answers, replies = mc.correct, gen.correct
    return float(np.mean([answers[i] != replies[j] for i, j in pairs]))


def _percent(scores: TaskScores | None, metric: str = "acc") -> str:
    if scores is None or metric not in scores.metrics:
        return "–"
    error = scores.stderr.get(metric)
    return f"{100 * scores.metrics[metric]:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def table(prefix: str, scores: dict[tuple[str, int], TaskScores]) -> str:
    """A Markdown table of the tasks whose names begin with `prefix`."""
    tasks = sorted({task for task, _ in scores if task.startswith(prefix) and not task.endswith("_gen")})
    heads = [f"{k} shots{what}" for k in SHOTS for what in ("", ": exact", ": generated", ": open", ": differs")]
    exact = any("em" in s.metrics for (task, _), s in scores.items() if task in tasks)
    kept = [h for h in heads if exact or not h.endswith("exact")]
    lines = ["| task | n | " + " | ".join(kept) + " |", "|---" * (len(kept) + 2) + "|"]
    for task in tasks:
        cells: list[str] = []
        for shots in SHOTS:
            mc, gen = scores.get((task, shots)), scores.get((f"{task}_gen", shots))
            both = mc is not None and gen is not None
            cells += [_percent(mc)] + ([_percent(mc, "em")] if exact else [])
            cells += [f"{_percent(gen)} (n = {gen.n})" if gen and mc and gen.n != mc.n else _percent(gen)]
            cells += [f"{100 * gen.unparsed:.1f}" if gen else "–"]
            cells += [f"{100 * differing(mc, gen):.1f}" if both else "–"]  # type: ignore[arg-type]
        lines.append(f"| `{task}` | {next(s.n for (t, _), s in scores.items() if t == task)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_section(readme: str, body: str) -> str:
    """The text of a README with its section on results replaced, or put before its checklist (else at its end)."""
    start = readme.find(SECTION)
    if start < 0:
        start = readme.find(BEFORE) if BEFORE in readme else len(readme)
        before, after = readme[:start], readme[start:]
    else:
        end = readme.find("\n### ", start + 1)
        before, after = readme[:start], readme[end + 1 :] if end >= 0 else ""
    return f"{before.rstrip()}\n\n{SECTION}\n\n{body}\n" + (f"\n{after}" if after else "")


def main() -> int:
    """Print the tables of a folder of evaluations, or write them into the task READMEs."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the evaluations")
    parser.add_argument("--readme", action="store_true", help="write the tables into the task READMEs")
    arguments = parser.parse_args()
    try:
        scores = read_all(arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for folder, prefix in FOLDERS.items():
        body = f"{ABOUT}\n\n{table(prefix, scores)}"
        path = TASK_PATH / folder / "README.md"
        if arguments.readme:
            path.write_text(with_section(path.read_text(encoding="utf-8"), body), encoding="utf-8")
        print(f"{folder}\n{table(prefix, scores)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
