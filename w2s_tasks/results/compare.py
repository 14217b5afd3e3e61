"""Two evaluations of the same questions, row by row: how often they agree, and the paired difference of their accuracies.

python -m w2s_tasks.results.compare OUT_A OUT_B      two folders that lm_eval wrote with --log_samples
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import typer

from w2s_tasks.errors import UserError
from w2s_tasks.results.read import TaskScores, read_evaluation
from w2s_tasks.results.safety import aligned
from w2s_tasks.results.stats import paired_difference


def compared(first: TaskScores, second: TaskScores) -> str:
    """One line: n, both accuracies, their paired difference (± standard error), and the share of equal answers.

    Where both have log-likelihoods, also the mean absolute difference of those.

    Raises:
        UserError: the questions differ.
    """
    aligned(first, second)
    difference = paired_difference(first.correct, second.correct, first.cluster)
    parts = [
        f"{first.task}: n {first.n}",
        f"accuracy {first.correct.mean():.1%} and {second.correct.mean():.1%}",
        f"difference {difference.value:+.1%} ± {difference.stderr:.1%}",
    ]
    if first.predicted is not None and second.predicted is not None:
        parts.append(f"same answer {np.mean(first.predicted == second.predicted):.1%}")
    if first.logliks is not None and second.logliks is not None:
        both = np.isfinite(first.logliks) & np.isfinite(second.logliks)
        apart = np.abs(first.logliks[both] - second.logliks[both])
        parts.append(f"log-likelihoods differ by {apart.mean():.4f} on average")
    return ", ".join(parts)


def main(first: Path, second: Path) -> None:
    """Print a line for every task that both evaluations have.

    Raises:
        UserError: a folder without results, no task in common, or other questions.
    """
    mine, theirs = read_evaluation(first), read_evaluation(second)
    common = [task for task in mine if task in theirs]
    if not common:
        raise UserError(f"no task in common: {', '.join(mine)} and {', '.join(theirs)}.")
    for task in common:
        typer.echo(compared(mine[task], theirs[task]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        typer.echo(__doc__, err=True)
        sys.exit(2)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
