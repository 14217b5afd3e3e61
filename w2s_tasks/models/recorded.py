"""``--model w2s-recorded``: answers generated-text tasks from files of recorded replies, without a model.

Arguments: ``path`` (a file, or a folder with one model's files), ``match`` (``prompt`` or ``row``), ``missing`` (``error``
or ``skip``). Three formats are read: the seed study's JSON lists, lm_eval's own ``samples_*.jsonl``, and JSONL with a
``prompt`` and a ``response`` a line.

By prompt, a request takes the reply to the same prompt, or to one that ends with it after a blank line: a recorded prompt
with shots answers the same question asked without. By row, document i takes row i of the file of its task, or of the only
file. A prompt without a reply is an error; with ``missing=skip`` it is left out of our generated-text tasks, and counted in
the result file under ``config``.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.paths import file_name
from w2s_tasks.scoring.generated import NoReply
from w2s_tasks.user_text import parse_json, read_text, shown

log = logging.getLogger(__name__)

SUBTASKS = ("justice", "deontology", "virtue", "utilitarianism", "commonsense", "long_commonsense")
STUDY_FILE = re.compile(rf"({'|'.join(SUBTASKS)})(_hard)?(?:_.*)?")
SAMPLES_FILE = re.compile(r"samples_(.+)_\d{4}-\d{2}-\d{2}T[\d.-]+")


@dataclass(frozen=True)
class Reply:
    """One recorded reply: to which prompt, at which row of which task (None where the file does not tell)."""

    prompt: str
    text: str
    row: int
    task: str | None = None


def study_subtask(path: Path) -> tuple[str, str] | None:
    """Subtask and split (test or hard) of a result file of the seed study, by its name; None for another file."""
    match = STUDY_FILE.fullmatch(path.stem) if path.suffix == ".json" else None
    return (match[1], "hard" if match[2] else "test") if match else None


def study_task(subtask: str, split: str) -> str:
    """The name of our task that asks as the study did."""
    name = "commonsense_long" if subtask == "long_commonsense" else subtask
    return f"w2s_ethics_study_{name}{'_hard' if split == 'hard' else ''}"


def _text(record: Any, key: str, where: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        found = type(record.get(key)).__name__ if isinstance(record, dict) and key in record else "nothing"
        raise UserError(f"{where}: '{key}' must be a string, found {found}; the file is altered or of another layout.")
    return record[key]


def read_study_file(path: Path) -> list[dict[str, Any]]:
    """The records of one result file of the seed study, each with ``test_prompt`` and ``model_response``.

    A response of null (a chat API's refusal) stays None.

    Raises:
        UserError: not a JSON list of such records; the message names the file and the row, counted from 0.
    """
    records = parse_json(read_text(path), str(path))
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: a list of recorded replies is expected, found {type(records).__name__} or an empty one.")
    for row, record in enumerate(records):
        where = f"{path}, row {row}"
        _text(record, "test_prompt", where)
        if "model_response" not in record or record["model_response"] is not None:
            _text(record, "model_response", where)
    return records


def _lines(path: Path) -> Iterable[tuple[str, Any]]:
    """Each line's place and content."""
    # Not splitlines(): texts may hold other line separators (U+2028, U+0085) as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def _from_sample(record: dict[str, Any], task: str | None, where: str) -> Reply:
    try:
        prompt, text = record["arguments"]["gen_args_0"]["arg_0"], record["resps"][0][0]
        row = record["doc_id"]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{where}: not a sample of lm_eval ({type(error).__name__}: {error}).") from error
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise UserError(f"{where}: 'doc_id' must be a document's number, found {shown(row)}.")
    if not isinstance(text, str) or not isinstance(prompt, str):
        raise UserError(f"{where}: this sample holds log-likelihoods, not text; record a generated-text task (`..._gen`).")
    return Reply(prompt, text, row, task)


def _read_jsonl(path: Path) -> list[Reply]:
    match = SAMPLES_FILE.fullmatch(path.stem)
    replies = []
    for row, (where, record) in enumerate(_lines(path)):
        if isinstance(record, dict) and "resps" in record:
            replies.append(_from_sample(record, match[1] if match else None, where))
        else:
            replies.append(Reply(_text(record, "prompt", where), _text(record, "response", where), row))
    if not replies:
        raise UserError(f"{path}: no recorded reply in it; one JSON object a line is expected.")
    return replies


def read_replies(path: Path) -> list[Reply]:
    """All replies of one file.

    Raises:
        UserError: a format that is none of the three, or a malformed row, with file and row.
    """
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    place = study_subtask(path)
    task = study_task(*place) if place else None
    return [Reply(r["test_prompt"], r["model_response"] or "", i, task) for i, r in enumerate(read_study_file(path))]


def newest(paths: Iterable[Path], key: Any) -> list[Path]:
    """The last file by name (names end in a time) for each value of `key`; None leaves a file out."""
    chosen = {key(path): path for path in sorted(paths, key=lambda p: p.name)}
    return [path for value, path in chosen.items() if value is not None]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"path={path}: no such file or folder of recorded replies.")
    found = [p for p in path.rglob("*.json*") if SAMPLES_FILE.fullmatch(p.stem) or study_subtask(p)]
    found = found or sorted(path.glob("*.jsonl"))
    folders = sorted({p.parent.name for p in found})
    if len(folders) > 1:
        raise UserError(f"{path} holds the replies of several models ({', '.join(folders)}): name one of the folders.")
    if not found:
        raise UserError(f"{path}: no recorded replies (the study's *.json, samples_*.jsonl, or *.jsonl) in it.")

    def what(p: Path) -> Any:
        match = SAMPLES_FILE.fullmatch(p.stem)
        return match[1] if match else study_subtask(p) or p.name

    return newest(found, what)


def _option(name: str, value: str, allowed: tuple[str, str]) -> str:
    if value not in allowed:
        raise UserError(f"{name}={value}: {' or '.join(allowed)} is expected.{nearest(value, allowed)}")
    return value


class Recorded(LM):
    """An lm_eval model that looks replies up."""

    def __init__(
        self,
        path: str,
        match: str = "prompt",
        missing: str = "error",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Read the recorded replies.

        Args:
            path: a file, or a folder with the files of one model.
            match: find a reply by ``prompt`` or by ``row``.
            missing: a prompt without a reply is an ``error``, or ``skip``: left out and counted.
            batch_size: taken from lm_eval's command line, unused, as are `max_batch_size` and `device`.
            max_batch_size: unused.
            device: unused.

        Raises:
            UserError: nothing to read there, a malformed row, or an unknown option.
        """
        super().__init__()
        self._match = _option("match", match, ("prompt", "row"))
        self._missing = _option("missing", missing, ("error", "skip"))
        self._path = Path(path).expanduser()
        self.missing = 0
        self._replies = [reply for file in _files(self._path) for reply in read_replies(file)]
        self._by_prompt: dict[str, list[Reply]] = defaultdict(list)
        self._by_last_line: dict[str, list[Reply]] = defaultdict(list)
        self._by_row: dict[str | None, dict[int, Reply]] = defaultdict(dict)
        for reply in self._replies:
            self._by_prompt[reply.prompt].append(reply)
            self._by_last_line[reply.prompt.rpartition("\n")[2]].append(reply)
            known = self._by_row[reply.task].setdefault(reply.row, reply)
            if known.text != reply.text:  # one for each filter is usual; two answers are not
                raise UserError(
                    f"{self._path}: two different replies for document {reply.row} of {reply.task or 'its file'}."
                )
        self._taken: dict[str, int] = defaultdict(int)

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval adds to ``config`` of its result file."""
        return {"recorded_replies": len(self._replies), "recorded_missing": self.missing}

    def _prompt_match(self, prompt: str) -> Reply | None:
        found = self._by_prompt.get(prompt)
        if not found:
            ends = self._by_last_line.get(prompt.rpartition("\n")[2], [])
            found = [reply for reply in ends if reply.prompt.endswith(f"\n\n{prompt}")]
        if not found:
            return None
        # Documents that are asked twice take their replies in the recorded order.
        taken = self._taken[prompt]
        self._taken[prompt] += 1
        return found[min(taken, len(found) - 1)]

    def _row_match(self, request: Instance) -> Reply | None:
        only = next(iter(self._by_row)) if len(self._by_row) == 1 else None
        rows = self._by_row.get(file_name(request.task_name), self._by_row.get(only, {}))
        return rows.get(request.doc_id)

    def _answer(self, request: Instance) -> str:
        prompt = str(request.args[0])
        reply = self._prompt_match(prompt) if self._match == "prompt" else self._row_match(request)
        if reply is not None:
            return reply.text
        if self._missing == "error":
            raise UserError(
                f"{self._path}: no recorded reply for document {request.doc_id} of {request.task_name}, by {self._match}. "
                f"Its prompt ends: {prompt[-200:]!r}. Use missing=skip to leave such prompts out, or match="
                f"{'row' if self._match == 'prompt' else 'prompt'}, or the --num_fewshot of the recording."
            )
        self.missing += 1
        return NoReply()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The recorded reply to each request.

        Raises:
            UserError: a prompt has none, and missing=skip was not given.
        """
        self._taken.clear()
        before = self.missing
        answers = [self._answer(request) for request in requests]
        if self.missing > before:
            log.warning("%d of %d prompts have no recorded reply and are left out", self.missing - before, len(requests))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: there is only text.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{requests[0].task_name} asks for log-likelihoods, which recorded text doesn't have: use its `_gen` twin."
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refused: there is only text.

        Raises:
            UserError: always.
        """
        raise UserError(f"{requests[0].task_name} asks for log-likelihoods, which recorded text doesn't have.")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages' contents, a blank line between them: recorded text has no template of its own."""
        return "\n\n".join(message["content"] for message in chat_history)
