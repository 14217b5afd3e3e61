"""Chat fine-tuning files: rows from the task's own renderer, checked as the service does, counted before anything is sent.

A row's messages are those that lm_eval renders for a chat model in evaluation; the assistant's reply is the text of the
labelled choice, exactly what the evaluation scores.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2s_tasks.errors import UserError

if TYPE_CHECKING:
    from trainers.harness.tasks import HarnessTask, PromptStyle

Row = dict[str, Any]
CountTokens = Callable[[str], int]

ROLES = ("system", "developer", "user", "assistant")
MIN_EXAMPLES = 10
MAX_BYTES = 512_000_000
"""The service's limit for one file."""
TOKENS_A_MESSAGE, TOKENS_A_ROLE, TOKENS_A_ROW = 3, 1, 3
"""What the chat format adds, after OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning")."""
EXAMPLE_LIMITS = {"gpt-3.5": 16_385, "babbage": 16_384, "davinci": 16_384}
EXAMPLE_LIMIT = 65_536
"""Tokens of one example for gpt-4o and later; longer ones would be cut, and their answer lost."""
TARGET_EPOCHS, FEWEST_EXAMPLES, MOST_EXAMPLES, MOST_EPOCHS = 3, 100, 25_000, 25
SPECIAL = re.compile(
    r"<\|(?:endoftext|startoftext|endofprompt|fim_(?:prefix|middle|suffix)|im_(?:start|end|sep)|start|end|message|channel"
    r"|constrain|return|call|reserved_\d+|begin_of_text|end_of_text|(?:start|end)_header_id|eo[tm]_id)\|>"
)
"""Special tokens of OpenAI's tokenizers, and of the open models that services train (ChatML, Llama 3, Harmony)."""


class AsJson:
    """A chat template that keeps the messages as they are, as endpoints take them."""

    @staticmethod
    def apply_chat_template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps(messages)


def quoted(choice: str) -> str:
    """The seed study's targets: the answer in double quotes."""
    return f'"{choice}"'


TARGETS: dict[str, Callable[[str], str]] = {"plain": lambda choice: choice, "quoted": quoted}


def chat_row(task: HarnessTask, doc: Mapping[str, Any], choice: int, style: PromptStyle, target: str = "plain") -> Row:
    """One training example.

    Args:
        task: renders messages and choices.
        doc: the document.
        choice: index of the labelled choice.
        style: how the evaluation prompts; its ``chat_template`` must be on.
        target: plain or quoted.
    """
    pairs = task.pairs(doc, style, AsJson())
    messages = json.loads(pairs[0][0])
    reply = pairs[choice][1]
    if messages and messages[-1]["role"] == "assistant":  # the task's gen_prefix begins the reply
        reply = messages.pop()["content"] + reply
    return {"messages": [*messages, {"role": "assistant", "content": TARGETS[target](reply)}]}


def chat_rows(
    task: HarnessTask, docs: Sequence[Mapping[str, Any]], choices: Sequence[int], style: PromptStyle, target: str = "plain"
) -> list[Row]:
    """Training examples for documents and the indices of their labelled choices; see `chat_row`."""
    return [chat_row(task, doc, int(choice), style, target) for doc, choice in zip(docs, choices, strict=True)]


def to_jsonl(rows: Sequence[Row]) -> str:
    """The file's text, one row a line; the same rows give the same bytes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@functools.cache
def _encoding() -> Any:
    import bpe_openai

    return bpe_openai.get_encoding("o200k_base")


@functools.lru_cache(maxsize=4096)
def count_tokens(text: str) -> int:
    """Tokens in o200k_base (gpt-4o and later), offline; an estimate for models with another vocabulary."""
    return len(_encoding().encode_ordinary(text))


def row_tokens(row: Row, count: CountTokens = count_tokens) -> int:
    """Tokens of one example, the chat format's own included."""
    messages = row["messages"]
    return TOKENS_A_ROW + sum(TOKENS_A_MESSAGE + TOKENS_A_ROLE + count(m["content"]) for m in messages)


def auto_epochs(rows: int) -> int:
    """The number of epochs that `auto` is likely to become, after OpenAI's cookbook; the service decides."""
    if rows * TARGET_EPOCHS < FEWEST_EXAMPLES:
        return min(MOST_EPOCHS, FEWEST_EXAMPLES // max(1, rows))
    if rows * TARGET_EPOCHS > MOST_EXAMPLES:
        return max(1, MOST_EXAMPLES // rows)
    return TARGET_EPOCHS


def example_limit(model: str) -> int:
    """Tokens that one example of this model may have."""
    base = model.split(":")[1] if model.startswith("ft:") else model
    return next((limit for prefix, limit in EXAMPLE_LIMITS.items() if base.startswith(prefix)), EXAMPLE_LIMIT)


@dataclass(frozen=True)
class Counts:
    """What a file holds. ``duplicates``: rows equal to an earlier one; ``conflicts``: prompts with more than one reply."""

    rows: int
    tokens: int
    longest: int
    bytes: int
    duplicates: int
    conflicts: int
    targets: Mapping[str, int]

    def notes(self) -> list[str]:
        """What a user should know although the service accepts it."""
        found = []
        if self.duplicates:
            found.append(f"{self.duplicates:,} of {self.rows:,} rows repeat an earlier row")
        if self.conflicts:
            found.append(f"{self.conflicts:,} prompts occur with different replies")
        if len(self.targets) == 1:
            found.append(f"every reply is {next(iter(self.targets))!r}: there is nothing to learn")
        return found


def _check_row(number: int, row: Row) -> None:
    messages = row.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        raise UserError(f"training row {number}: a row needs a prompt and a reply.")
    for m in messages:
        if m.get("role") not in ROLES:
            raise UserError(f"training row {number}: no role '{m.get('role')}'. Known: {', '.join(ROLES)}.")
        if not isinstance(m.get("content"), str) or not m["content"].strip():
            raise UserError(
                f"training row {number}: the {m['role']} message is empty; leave the row out of the task's data."
            )
        if found := SPECIAL.search(m["content"]):
            raise UserError(
                f"training row {number}: the {m['role']} message holds '{found[0]}', a special token of models: OpenAI ends "
                "a job for it after the upload, others read it as the end of a text or a turn. Leave the row out of the "
                "task's data, or write the token another way there. Nothing was sent."
            )
    if messages[-1]["role"] != "assistant":
        raise UserError(f"training row {number}: the last message is the {messages[-1]['role']}'s, not the assistant's.")


def check_rows(rows: Sequence[Row], model: str, count: CountTokens = count_tokens) -> Counts:
    """Check a file as the service does, before it is sent.

    Args:
        rows: the examples.
        model: whose limits apply.
        count: tokens of a text.

    Raises:
        UserError: fewer than 10 rows; an empty or malformed message, or one with a special token; an example beyond the
            model's window; a file too large.
    """
    if len(rows) < MIN_EXAMPLES:
        raise UserError(f"the training file has {len(rows)} rows; fine-tuning needs at least {MIN_EXAMPLES}.")
    limit, tokens, longest, size = example_limit(model), 0, 0, 0
    seen: set[str] = set()
    replies: dict[str, set[str]] = {}
    targets: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        _check_row(number, row)
        n = row_tokens(row, count)
        if n > limit:
            raise UserError(
                f"training row {number} has {n:,} tokens; {model} takes {limit:,} an example and would cut the reply."
            )
        tokens, longest = tokens + n, max(longest, n)
        text = json.dumps(row, ensure_ascii=False)
        size += len(text.encode()) + 1
        seen.add(text)
        reply = row["messages"][-1]["content"]
        targets[reply] += 1
        replies.setdefault(json.dumps(row["messages"][:-1]), set()).add(reply)
    if size > MAX_BYTES:
        raise UserError(
            f"the training file has {size / 1e6:,.0f} MB; the service takes {MAX_BYTES / 1e6:,.0f} MB. Use split.limit."
        )
    conflicts = sum(len(r) > 1 for r in replies.values())
    return Counts(len(rows), tokens, longest, size, len(rows) - len(seen), conflicts, dict(targets))
