"""Confusion tables of the parsers of text replies: what replies mean, labelled by hand, against what is read.

    scripts/parsers                                         # prints the tables of the replies in tests/replies
    scripts/parsers --readme tests/replies/README.md        # and writes them there

A line of a file of replies is ``{"choices": VOCABULARY, "meaning": a choice or "unclear", "reply": TEXT}``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from w2s_tasks.scoring.answers import PARSERS, Parser

REPLIES = Path(__file__).parents[2] / "tests" / "replies"
FILES = {"labelled.jsonl": "Replies that the rules were written with", "held_out.jsonl": "Replies that they were not"}
SECTION = "## What the parsers read"
UNCLEAR = "unclear"
VOCABULARIES: dict[str, tuple[str, ...]] = {
    "reasonable": ("unreasonable", "reasonable"),
    "wrong": ("not wrong", "wrong"),
    "yes_no": ("no", "yes"),
    "boolq": ("no", "yes"),
    "sentiment": ("negative", "positive"),
    "digit": ("0", "1"),
    "rating": tuple("123456789"),
}


@dataclass(frozen=True)
class Labelled:
    """One reply, what it answers, and what it means."""

    choices: str
    meaning: str
    reply: str

    def read(self, parser: Parser) -> str:
        """What a parser reads: a choice, or unclear."""
        choices = VOCABULARIES[self.choices]
        found = parser(self.reply, choices)
        return UNCLEAR if found is None else choices[found]


def load(path: Path) -> list[Labelled]:
    """The replies of a file."""
    return [Labelled(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _row(name: str, meaning: str, replies: Sequence[Labelled]) -> str:
    cells = [name, meaning, str(len(replies))]
    for parser in (PARSERS["strict"], PARSERS["lenient"]):
        read = [(r.meaning, r.read(parser)) for r in replies]
        right = sum(m == r for m, r in read if m != UNCLEAR)
        none = sum(r == UNCLEAR for _, r in read)
        cells += ["" if meaning == UNCLEAR else str(right), str(len(read) - right - none), str(none)]
    return "| " + " | ".join(cells) + " |"


def table(replies: Sequence[Labelled]) -> str:
    """Markdown: for each vocabulary and meaning how many replies are read as meant, as something else, and not at all."""
    each = "as meant | otherwise | unparsed"
    lines = [f"| answers | meaning | replies | strict: {each} | lenient: {each} |", "|" + " --- |" * 9]
    for name, choices in VOCABULARIES.items():
        mine = [r for r in replies if r.choices == name]
        if len(choices) > 2:
            parts: Iterable[tuple[str, list[Labelled]]] = [("a number", [r for r in mine if r.meaning != UNCLEAR])]
        else:
            parts = [(c, [r for r in mine if r.meaning == c]) for c in choices]
        parts = [*parts, (UNCLEAR, [r for r in mine if r.meaning == UNCLEAR])]
        lines += [_row(name, meaning, part) for meaning, part in parts if part]
    clear = [r for r in replies if r.meaning != UNCLEAR]
    lines += [_row("all", "a choice", clear), _row("all", UNCLEAR, [r for r in replies if r.meaning == UNCLEAR])]
    return "\n".join(lines)


def misread(replies: Sequence[Labelled]) -> str:
    """One line a reply that the lenient parser takes for something else than it means."""
    found = [(r, r.read(PARSERS["lenient"])) for r in replies]
    wrong = [f'- "{r.reply}" ({r.meaning}) is read as {read}.' for r, read in found if read not in (UNCLEAR, r.meaning)]
    return "\n".join(wrong) or "None is read as something else than it means."


def report(files: Sequence[Path]) -> str:
    """The tables of some files, each with what is misread."""
    parts = []
    for path in files:
        replies = load(path)
        title = FILES.get(path.name, path.name)
        parts += [f"{title} ({path.name}):", table(replies), misread(replies)]
    return "\n\n".join(parts)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="What the parsers make of replies labelled by hand.")
    parser.add_argument("files", nargs="*", type=Path, help="files of labelled replies (default: those of tests/replies)")
    parser.add_argument("--readme", type=Path, help="also write the tables into this file's section")
    arguments = parser.parse_args()
    tables = report(arguments.files or [REPLIES / name for name in FILES])
    if arguments.readme:
        before = arguments.readme.read_text(encoding="utf-8").partition(SECTION)[0]
        arguments.readme.write_text(f"{before}{SECTION}\n\nMade by `scripts/parsers`.\n\n{tables}\n", encoding="utf-8")
    sys.stdout.write(tables + "\n")


if __name__ == "__main__":
    main()
