"""What a set of reply pairs holds, a table of its splits: rows, prompts, words, and how far length tells the better reply.

``scripts/preference_facts TASK ...`` for tasks of `w2s_tasks.rows.preferences`. What the loader leaves out is printed too.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import numpy.typing as npt

from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.stats import accuracy_interval
from w2s_tasks.rows.dialogues import CUT

HEADER = ("split", "rows", "prompts", "A is better", "words: dialogue", "words: reply", "cut", "longer is better", "95 %")


def words(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Words of each text, shape [n]."""
    return np.array([len(text.split()) for text in texts], dtype=float)


def longer_is_better(rows: Mapping[str, Sequence[str]]) -> npt.NDArray[np.float64]:
    """1 where the better reply has more characters, 0 where fewer, one half where as many; shape [n]."""
    more = np.sign([len(b) - len(a) for a, b in zip(rows["a"], rows["b"], strict=True)])
    side = 2 * np.asarray(rows["label"], dtype=float) - 1
    return np.asarray((more * side + 1) / 2)


def facts(split: str, rows: datasets.Dataset) -> list[str]:
    """A line of the table."""
    table = rows.to_dict()
    right, cluster = longer_is_better(table), np.asarray(table["w2s_group"])
    low, high = accuracy_interval(right, cluster)
    replies = words([*table["a"], *table["b"]])
    cut = np.mean([text.startswith(CUT) or f": {CUT}" in text[:20] for text in table["context"]])
    return [
        split,
        f"{len(rows):,}",
        f"{len(set(table['w2s_group'])):,}",
        f"{100 * (1 - np.mean(table['label'])):.1f} %",
        f"{words(table['context']).mean():.0f}",
        f"{replies.mean():.0f}",
        f"{100 * cut:.1f} %",
        f"{100 * right.mean():.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("w2s_tasks").setLevel(logging.INFO)
    for name, task in W2STaskManager().load(parser.parse_args().tasks)["tasks"].items():
        lines = [HEADER, ["---"] * len(HEADER), *(facts(split, task.dataset[split]) for split in ("train", "validation"))]
        print("\n".join([f"\n{name}\n", *(f"| {' | '.join(line)} |" for line in lines)]))


if __name__ == "__main__":
    main()
