"""Labels that are solutions: a model writes several of a row, and the answer that most of them come to decides.

Self-consistency (Wang et al. 2022, arXiv 2203.11171): n solutions are sampled, each is read for its final answer by the
task's own reader (`w2s_tasks.scoring.replies`), which sees the text alone, and a* = argmax_a sum_i 1[a_i = a]. The label is
the likeliest solution that comes to a*, with the share of samples that do: no gold is in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.ask import Docs, tell_unanswered
from trainers.labels.text_labels import TextLabels
from trainers.section import Section
from trainers.store import processes
from trainers.store.stages import CHECKPOINTS, write_atomic
from w2s_tasks import notebook
from w2s_tasks.errors import UserError
from w2s_tasks.models.sampling import Sample, sample
from w2s_tasks.rows.forms import draws
from w2s_tasks.scoring.replies import AnswerReader

SAMPLES = "samples.jsonl"
"""All solutions that a model wrote, a row a line."""
TOGETHER = 64
"""Rows that are sampled, and then kept, together."""


class Generate(Section):
    """How models write solutions as labels."""

    samples: int = Field(default=4, ge=1)
    """Solutions a row; the answer that most of them come to is the label's."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the distribution that they are drawn from; 0 for the likeliest tokens."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature: at 0 all {self.samples} samples are the same; write samples: 1, or raise it")
        return self


GREEDY = Generate(samples=1, temperature=0)


def majority(samples: Sequence[Sample], reader: AnswerReader) -> tuple[str, str, float, float] | None:
    """The label of a row: solution, answer, its log-probability, and the share of samples with that answer.

    Of answers that as many samples come to, that whose samples have the highest mean log-probability wins.

    Args:
        samples: of the row.
        reader: how they are read and compared.

    Returns:
        None where no sample has an answer.
    """
    groups: list[list[tuple[Sample, str]]] = []
    for one in samples:
        said = reader.of(one.text)
        if said is None:
            continue
        same = next((group for group in groups if reader.equal(group[0][1], said)), None)
        if same is None:
            groups.append(same := [])
        same.append((one, said))
    if not groups:
        return None
    largest = max(groups, key=lambda group: (len(group), sum(one.logprob for one, _ in group) / len(group)))
    best, said = max(largest, key=lambda pair: pair[0].logprob)
    return best.text, said, best.logprob, len(largest) / len(samples)


@dataclass(frozen=True)
class Solutions:
    """Asks for solutions."""

    settings: Generate

    @property
    def hard(self) -> bool:
        """They are texts: there is nothing to decide."""
        return False

    def recipe(self, seed: int) -> dict[str, Any]:
        """How they are sampled."""
        return {"generate": self.settings.model_dump(), "seed": seed}

    def ask(
        self, lm: Any, task: HarnessTask, docs: Docs, ids: Sequence[str], style: PromptStyle, seed: int, out: Path
    ) -> TextLabels:
        """Sample, and put to the vote.

        Raises:
            UserError: no row has an answer; or as `w2s_tasks.models.sampling.sample`.
        """
        requests = task.requests(docs, style, lm)
        return self.vote(lm, task, [request.args for request in requests], ids, seed, out)

    def vote(
        self, lm: Any, task: HarnessTask, requests: Sequence[Any], ids: Sequence[str], seed: int, out: Path
    ) -> TextLabels:
        """The same for rendered prompts, each with its settings of generation; leaves all samples in `out`."""
        share = -(-len(ids) // processes.count())  # each process samples a stretch
        part = slice(processes.index() * share, (processes.index() + 1) * share)
        own = self._sampled(lm, requests[part], ids[part], seed, out / CHECKPOINTS)
        by_id = dict(processes.gather(list(own.items())))
        lines = [json.dumps({"row_id": i, "samples": [[s.text, s.logprob] for s in by_id[i]]}) for i in ids]
        write_atomic(out / SAMPLES, "".join(f"{line}\n" for line in lines))
        voted = {i: majority(by_id[i], task.reader) for i in ids}
        found = {i: row for i, row in voted.items() if row is not None}
        tell_unanswered(f"{task.name}: no answer can be read in any sample of", found, ids)
        return TextLabels.of(found)

    def _sampled(
        self, lm: Any, requests: Sequence[Any], ids: Sequence[str], seed: int, work: Path
    ) -> dict[str, list[Sample]]:
        """The samples of rows, those that a killed labelling left included."""
        work.mkdir(parents=True, exist_ok=True)
        found = {i: own for i, own in _kept(work) if len(own) == self.settings.samples}
        with notebook.bar(total=len(ids), desc="sampling", unit="row", disable=not processes.is_main()) as bar:
            for start in range(0, len(ids), TOGETHER):
                now = slice(start, start + TOGETHER)
                # As a whole, so that packs, and with them the last digits, are those of a labelling that was not killed.
                if any(i not in found for i in ids[now]):
                    new = self._drawn(lm, requests[now], seed)
                    _keep(work, ids[now], new)
                    found |= zip(ids[now], new, strict=True)
                bar.update(len(ids[now]))
        return {i: found[i] for i in ids}

    def _drawn(self, lm: Any, requests: Sequence[Any], seed: int) -> list[list[Sample]]:
        """The samples of some rows; each follows from the seed, the row's prompt and the sample's number."""
        contexts, settings = [context for context, _ in requests], requests[0][1]
        rounds = []
        for number in range(self.settings.samples):
            rngs = [draws(seed, "sample", str(number), context) for context in contexts]
            rounds.append(sample(lm, contexts, settings, self.settings.temperature, rngs))
        return [list(row) for row in zip(*rounds, strict=True)]


def _keep(work: Path, ids: Sequence[str], rows: Sequence[Sequence[Sample]]) -> None:
    """Append samples to this process's file."""
    lines = (json.dumps([i, [[s.text, s.logprob] for s in own]]) for i, own in zip(ids, rows, strict=True))
    with (work / f"samples-{processes.index()}.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _kept(work: Path) -> Iterator[tuple[str, list[Sample]]]:
    """What is in the files of all processes; a line that a kill cut short is left out."""
    for path in sorted(work.glob("samples-*.jsonl")):
        text = path.read_text(encoding="utf-8", errors="replace")
        whole, _, rest = text.rpartition("\n")
        if rest and path.name == f"samples-{processes.index()}.jsonl":  # the others' are theirs to append to
            write_atomic(path, f"{whole}\n" if whole else "")
        for line in whole.split("\n") if whole else ():
            try:
                i, own = json.loads(line)
                yield str(i), [Sample(str(words), float(logprob)) for words, logprob in own]
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}: not what a killed labelling leaves ({error}); delete it and run again.") from error
